"""A head that drips is cut off at its deadline; a connection that is kept for the next is not."""

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cli.patience import PatientProtocol
from tests import clock
from tests.api.serving import serve
from tests.record import Record

HEAD_S = 0.5
GET = b"GET / HTTP/1.1\r\nHost: luthier.test\r\n"


async def hello(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"hi"})


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(PatientProtocol, "head_s", HEAD_S)
    with serve(hello) as port:
        yield port


def drip(connection: socket.socket) -> tuple[float, float]:
    """Seconds until the server hangs up on a head that never ends: all, and those that ran."""
    began, ran = time.monotonic(), clock.now()
    connection.settimeout(0.02)
    while time.monotonic() - began < 60:
        try:
            connection.sendall(b"x")
            if connection.recv(4096) == b"":
                break
        except TimeoutError:
            continue
        except OSError:
            break
    return time.monotonic() - began, clock.now() - ran


def answer(connection: socket.socket) -> bytes:
    connection.settimeout(60)
    found = b""
    while not found.endswith(b"hi"):
        found += connection.recv(4096)
    return found


def test_a_head_that_drips_is_cut_off(port: int, record: Record) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(GET + b"X-Slow: ")
        held, ran = drip(connection)
    record("R20", "a head that drips is cut off, limit scaled to 0.5 s", ran, "s", at_most=1.5)
    assert held >= HEAD_S * 0.8


def test_a_connection_that_says_nothing_is_cut_off(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(60)
        assert connection.recv(1) == b""


def test_the_second_head_of_a_connection_has_the_same_deadline(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(GET + b"\r\n")
        assert answer(connection).startswith(b"HTTP/1.1 200")
        connection.sendall(GET + b"X-Slow: ")
        held, ran = drip(connection)
    assert held >= HEAD_S * 0.8
    assert ran < 5


def test_a_connection_that_waits_between_requests_is_kept(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for _ in range(3):
            connection.sendall(GET + b"\r\n")
            assert answer(connection).startswith(b"HTTP/1.1 200")
            time.sleep(HEAD_S * 1.4)
