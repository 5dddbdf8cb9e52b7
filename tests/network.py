"""Keeps the tests of this process on this machine: only loopback is connected."""

import ipaddress
import socket
from collections.abc import Callable
from typing import Any

import pytest


class NetworkUsed(Exception):
    """A test tried to leave this machine."""


def stay_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse name lookups and connections to anything but loopback."""
    lookup = socket.getaddrinfo

    def guarded_lookup(host: Any, *rest: Any, **options: Any) -> Any:
        _require_loopback(host)
        return lookup(host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", guarded_lookup)
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, _guarded(getattr(socket.socket, name)))


def _guarded(connect: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _require_loopback(address[0])
        return connect(self, address)

    return guarded


def _require_loopback(host: str | bytes | None) -> None:
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost"):
        return
    try:
        if ipaddress.ip_address(name.partition("%")[0]).is_loopback:
            return
    except ValueError:
        pass
    raise NetworkUsed(f"tests talk to loopback only, not to {name!r}")
