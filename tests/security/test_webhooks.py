"""S5: a webhook's URL leads nowhere that only this service can reach, whatever its name says."""

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_network
from typing import Any

import httpcore
import pytest

from jobs import sending
from jobs.sending import AddressRefused, Unreachable, post
from tests import clock
from tests.record import Record
from tests.v1.tuning.receiver import Receiver, receiving

HERE = (ip_network("127.0.0.0/8"),)
# Names that an attacker's own server of names may give any of these addresses.
INSIDE = [
    "127.0.0.1", "127.8.8.8", "0.0.0.0", "::1", "::", "10.0.0.1", "172.16.0.1", "172.31.255.254",
    "192.168.1.1", "169.254.169.254", "169.254.170.2", "fd00:ec2::254", "fe80::1", "fe80::1%lo",
    "100.64.0.1", "100.100.100.200", "168.63.129.16", "192.0.0.192", "198.18.0.1", "240.0.0.1",
    "255.255.255.255", "224.0.0.1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
    "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1",
    "2002:7f00:1::", "2002:a9fe:a9fe::", "fec0::1", "192.88.99.1", "2001:db8::1",
    "::127.0.0.1", "::a9fe:a9fe", "::ffff:0:127.0.0.1", "5f00::1", "3fff::1", "4000::1",
]  # fmt: skip
PUBLIC = "93.184.215.14"


@pytest.fixture
def canary() -> Iterator[Receiver]:
    with receiving() as canary:
        yield canary


class Names:
    """The network's edge: what names mean, and where connections would go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> None:
        self.asked: list[str] = []
        self.connected: list[str] = []
        self._answers = answers
        monkeypatch.setattr(socket, "getaddrinfo", self._look_up)
        monkeypatch.setattr(httpcore.SyncBackend, "connect_tcp", self._connect)

    def _look_up(self, host: str, port: int, **options: Any) -> list[Any]:
        self.asked.append(host)
        found = self._answers[min(len(self.asked), len(self._answers)) - 1]
        return [(0, 0, 0, "", (address, port)) for address in found]

    def _connect(self, host: str, port: int, *rest: Any, **options: Any) -> Any:
        self.connected.append(host)
        raise httpcore.ConnectError("nothing is outside")


def test_no_name_leads_inside(monkeypatch: pytest.MonkeyPatch, record: Record) -> None:
    for address in INSIDE:
        for found in ([address], [PUBLIC, address], [address, PUBLIC]):
            names = Names(monkeypatch, found)
            with pytest.raises(AddressRefused):
                post("https://hook.example/", b"{}", {}, ())
            assert names.connected == [], address
    record("S5", "addresses inside that webhooks were pointed at", len(INSIDE), at_least=30)


def test_no_address_in_a_url_leads_inside(canary: Receiver, record: Record) -> None:
    port = canary.url.rpartition(":")[2].partition("/")[0]
    hosts = ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "127.1"]
    hosts += ["2130706433", "0x7f000001", "017700000001", "127.0.0.1.", "LOCALHOST"]
    for host in hosts:
        for scheme in ("http", "https"):
            with pytest.raises((AddressRefused, Unreachable)):
                post(f"{scheme}://{host}:{port}/", b"{}", {}, ())
    assert canary.got == []
    record("S5", "webhooks that reached the canary", len(canary.got), exactly=0)


@pytest.fixture(autouse=True)
def _numbers_are_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """2130706433 is looked up here as outside of tests: what it means is what is tried."""
    guarded = socket.getaddrinfo

    def look_up(host: Any, *rest: Any, **options: Any) -> Any:
        if isinstance(host, str) and host[:1].isdigit():
            numeric = {**options, "flags": socket.AI_NUMERICHOST}
            host = socket.inet_ntoa(socket.inet_aton(host.rstrip(".")))
            return guarded(host, *rest, **numeric)
        return guarded(host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


def test_a_name_is_asked_once_and_what_it_said_is_connected_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = Names(monkeypatch, [PUBLIC], ["127.0.0.1"])
    with pytest.raises(Unreachable):
        post("https://rebind.example/", b"{}", {}, ())
    assert (names.asked, names.connected) == (["rebind.example"], [PUBLIC])


def test_what_the_operator_allows_is_reached_and_its_neighbours_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    allowed = (ip_network("10.1.0.0/16"),)
    for url in ("https://inside.example/", "HTTP://inside.example/"):
        names = Names(monkeypatch, ["10.1.2.3"])
        with pytest.raises(Unreachable):
            post(url, b"{}", {}, allowed)
        assert names.connected == ["10.1.2.3"]
    for address in ("10.2.0.1", "169.254.169.254"):
        names = Names(monkeypatch, [address])
        with pytest.raises(AddressRefused):
            post("https://inside.example/", b"{}", {}, allowed)
        assert names.connected == []
    names = Names(monkeypatch, [PUBLIC])  # by http nobody is sent to the outside
    for scheme in ("http", "HTTP"):
        with pytest.raises(AddressRefused):
            post(f"{scheme}://outside.example/", b"{}", {}, allowed)


def test_a_redirect_is_an_answer_and_is_not_followed(canary: Receiver) -> None:
    def redirect(handler: BaseHTTPRequestHandler, number: int) -> None:
        handler.send_response(307)
        handler.send_header("location", canary.url)
        handler.send_header("content-length", "0")
        handler.end_headers()

    with receiving() as receiver:
        receiver.answer = redirect
        assert post(receiver.url, b"{}", {}, HERE) == 307
    assert canary.got == []


def test_an_answer_that_drips_is_waited_for_no_longer_than_a_try(
    monkeypatch: pytest.MonkeyPatch, canary: Receiver
) -> None:
    stopped = threading.Event()

    def drip(handler: BaseHTTPRequestHandler, number: int) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nx: ")
        while not stopped.wait(0.05):
            handler.wfile.write(b"x")
            handler.wfile.flush()

    canary.answer = drip
    monkeypatch.setattr(sending, "TRY_S", 0.5)
    began = clock.now()
    with pytest.raises(Unreachable):
        post(canary.url, b"{}", {}, HERE)
    assert clock.now() - began < 3
    stopped.set()


def test_a_name_that_is_not_answered_for_takes_no_longer_than_a_try(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stopped = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: stopped.wait(20) and [])
    monkeypatch.setattr(sending, "TRY_S", 0.5)
    began = time.monotonic()
    with pytest.raises(Unreachable):
        post("https://tarpit.example/", b"{}", {}, ())
    assert time.monotonic() - began < 3
    stopped.set()


def test_of_a_long_answer_little_is_read(canary: Receiver) -> None:
    sent = [0]

    def flood(handler: BaseHTTPRequestHandler, number: int) -> None:
        handler.send_response(200)
        handler.send_header("content-length", str(1 << 30))
        handler.end_headers()
        piece = b"x" * (64 << 10)
        try:
            for _ in range(1 << 14):
                sent[0] += handler.wfile.write(piece)
        except OSError:
            return

    canary.answer = flood
    assert post(canary.url, b"{}", {}, HERE) == 200
    time.sleep(0.2)
    assert sent[0] < 64 << 20, "what the sockets hold, and not the gigabyte"


def test_a_certificate_of_nobody_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """TLS to the name that was asked for: a plain server does not pass for one."""
    with receiving() as receiver:
        with pytest.raises(Unreachable):
            post(receiver.url.replace("http:", "https:"), b"{}", {}, HERE)
        assert receiver.got == []
