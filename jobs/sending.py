"""A POST to an address that a client gave: never to where only this service can reach.

A name is resolved once, every address is looked at, and the connection goes to what was looked at.
Redirects are not followed; a try takes TRY_S at most and reads little of the answer.

Unsendable
├── AddressRefused   the URL leads to an address that is not the public's
└── Unreachable      nothing answered: no such name, no connection, no TLS, no time
"""

import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from queue import Empty, Queue
from typing import Any
from urllib.parse import urlsplit

import certifi
import httpcore

TRY_S = 10.0
READ_BYTES = 64 << 10  # of an answer; what it says is not looked at
MOST_ADDRESSES = 4
URL_MAX = 2048

Address = IPv4Address | IPv6Address
Networks = Sequence[IPv4Network | IPv6Network]

# Public by their numbers, or by older versions of Python, and yet not: Azure's and Oracle's
# metadata, relays of 6to4, IPv6's newer documentation.
NOT_PUBLIC = tuple(
    map(ip_network, ("168.63.129.16/32", "192.0.0.0/24", "192.88.99.0/24", "3fff::/20"))
)
# All that was ever given out of IPv6. Outside it are segments of routes (5f00::/16), a NAT64 of
# one's own (64:ff9b:1::/48), and IPv4 in older clothes (::127.0.0.1, ::ffff:0:127.0.0.1).
PUBLIC_IPV6 = IPv6Network("2000::/3")
NAT64 = ip_network("64:ff9b::/96")


class Unsendable(Exception):
    pass


class AddressRefused(Unsendable):
    pass


class Unreachable(Unsendable):
    pass


def post(url: str, body: bytes, headers: Mapping[str, str], networks: Networks) -> int:
    """The status that was answered. Raises Unsendable.

    networks: those that may be asked though they are not public, by http too.
    """
    check_url(url, networks)
    plain = urlsplit(url).scheme == "http"
    backend = _Pinned(networks, plain=plain, deadline=time.monotonic() + TRY_S)
    timeout = dict.fromkeys(("connect", "read", "write", "pool"), TRY_S)
    sent: list[tuple[bytes | str, bytes | str]] = [
        ("content-type", "application/json"),
        ("user-agent", "Luthier/0.1.0"),
        *headers.items(),
    ]
    try:
        with (
            httpcore.ConnectionPool(network_backend=backend, ssl_context=_trusted()) as pool,
            pool.stream(
                "POST", url, headers=sent, content=body, extensions={"timeout": timeout}
            ) as answer,
        ):
            _drain(answer.iter_stream())
            return answer.status
    except (
        httpcore.NetworkError,
        httpcore.ProtocolError,
        httpcore.TimeoutException,
        OSError,
    ) as error:
        raise Unreachable(f"Nothing answered there ({type(error).__name__}).") from None


def _drain(pieces: Iterable[bytes]) -> None:
    """Let the other side finish its answer, unless that is long; the status is known already."""
    seen = 0
    try:
        for piece in pieces:
            seen += len(piece)
            if seen > READ_BYTES:
                return
    except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException):
        return


def check_url(url: str, networks: Networks) -> None:
    """Raises AddressRefused for what can be seen to be wrong before anything is resolved."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise AddressRefused("This is no URL; give one such as https://example.com/hook.") from None
    if len(url) > URL_MAX or not url.isascii() or any(c.isspace() or c < "!" for c in url):
        raise AddressRefused(f"A URL has at most {URL_MAX} characters, all ASCII, and no spaces.")
    if parts.scheme not in ("https", "http") or (parts.scheme == "http" and not networks):
        raise AddressRefused("Only https:// URLs are delivered to; give one.")
    if not host or parts.username is not None or parts.password is not None or parts.fragment:
        raise AddressRefused("Give a URL with a host, and without a user, a password or a #.")
    try:
        address = ip_address(host)
    except ValueError:
        return
    require_allowed([address], networks, plain=parts.scheme == "http")


def require_allowed(addresses: Iterable[Address], networks: Networks, *, plain: bool) -> None:
    """Raises AddressRefused unless all of them may be asked."""
    for address in map(_meant, addresses):
        if any(address in network for network in networks):
            continue
        if plain or not _is_public(address):
            raise AddressRefused(
                "The URL leads to an address that is not public, or to http: only https to public "
                "addresses is delivered to, unless the operator allows its network "
                "(LUTHIER_WEBHOOK_NETWORKS)."
            )


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv6Address) and address not in PUBLIC_IPV6:
        return False
    public = address.is_global and not address.is_multicast
    return public and not any(address in network for network in NOT_PUBLIC)


def _meant(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for."""
    if isinstance(address, IPv4Address):
        return address
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = address.teredo[1] if address.teredo else None
    return address.ipv4_mapped or address.sixtofour or teredo or address


@cache
def _trusted() -> ssl.SSLContext:
    """The authorities of the system, and Mozilla's."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


class _Pinned(httpcore.NetworkBackend):
    """Connects to addresses that it has looked at, and to no name."""

    def __init__(self, networks: Networks, *, plain: bool, deadline: float) -> None:
        self._networks, self._plain, self._deadline = networks, plain, deadline
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        addresses = list(_resolved(host, port, _left(self._deadline)))
        require_allowed(addresses, self._networks, plain=self._plain)
        failed: Exception = httpcore.ConnectError("the name has no address")
        for address in addresses[:MOST_ADDRESSES]:
            try:
                left = _left(self._deadline) / 2  # the next one has a chance too
                stream = self._sockets.connect_tcp(str(address), port, left)
                return _Hurried(stream, self._deadline)
            except (httpcore.NetworkError, httpcore.TimeoutException) as error:
                failed = error
        raise failed


class _Hurried(httpcore.NetworkStream):
    """A stream on which everything together has an end, however slowly the other side drips."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream, self._deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._deadline))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        left = _left(self._deadline)
        return _Hurried(self._stream.start_tls(ssl_context, server_hostname, left), self._deadline)

    def get_extra_info(self, info: str) -> object:
        return self._stream.get_extra_info(info)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("the try has taken its time")
    return left


def _resolved(host: str, port: int, timeout_s: float) -> Iterator[Address]:
    """Asked in a thread of its own: whoever answers for a name may take minutes to say nothing."""
    answer: Queue[list[tuple[Any, ...]]] = Queue()

    def ask() -> None:
        try:
            answer.put(list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
        except (OSError, UnicodeError):
            answer.put([])

    threading.Thread(target=ask, daemon=True, name="resolver").start()
    try:
        found = answer.get(timeout=timeout_s)
    except Empty:
        raise httpcore.ConnectTimeout("the name is not answered for in time") from None
    if not found:
        raise httpcore.ConnectError("the name cannot be resolved")
    for entry in found:
        yield ip_address(entry[4][0])
