"""A real HTTP proxy before a real S3 server that misbehaves as it is told, one fault a request."""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

Fault = Literal[
    "none",
    "unavailable",  # 503 without asking the server
    "lost request",  # the connection breaks before the server is asked
    "lost answer",  # the server does it, and the answer is lost
    "cut body",  # half of the answer's body, then the connection breaks
    "flipped bit",  # one bit of the answer's body is another
    "timeout",  # the server does it, and the client waits in vain
]


class Weather:
    """Faults at random, from a seed: 30 % unavailable, 10 % timeouts, 5 % cut bodies.

    Never more than four in a row for one object, so that a client that tries five times gets
    through and one that tries less often does not.
    """

    def __init__(self, seed: int, *, most_in_a_row: int = 4) -> None:
        self._dice, self._most = random.Random(seed), most_in_a_row
        self._in_a_row: dict[str, int] = {}
        self.faults = 0

    def fault(self, path: str) -> Fault:
        drawn: Fault = self._dice.choices(
            ["none", "unavailable", "timeout", "cut body"], [55, 30, 10, 5]
        )[0]
        row = self._in_a_row.get(path, 0)
        if drawn == "none" or row >= self._most:
            self._in_a_row[path] = 0
            return "none"
        self._in_a_row[path] = row + 1
        self.faults += 1
        return drawn


class FaultyProxy:
    """`plan` says what befalls the coming requests; when it is used up, the weather does."""

    def __init__(
        self, upstream: str, weather: Weather | None = None, *, stall_s: float = 0.5
    ) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.weather, self.stall_s = weather, stall_s
        self.plan: list[Fault] = []
        self.seen: list[str] = []
        self._lock = threading.Lock()
        self.url = ""

    def next_fault(self, method: str, target: str) -> Fault:
        parts = urlsplit(target)
        with self._lock:
            self.seen.append(f"{method} {parts.query}")
            if self.plan:
                return self.plan.pop(0)
            return self.weather.fault(parts.path) if self.weather else "none"


@contextmanager
def faulty_proxy(
    upstream: str, weather: Weather | None = None, *, stall_s: float = 0.5
) -> Iterator[FaultyProxy]:
    """The proxy, serving on a free port of loopback until the block ends."""
    proxy = FaultyProxy(upstream, weather, stall_s=stall_s)

    class Handler(_Handler):
        faults = proxy

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        proxy.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield proxy
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # answers `Expect: 100-continue`, which boto3 else waits for
    faults: FaultyProxy

    def _forward(self) -> None:
        self.close_connection = True  # one request a connection: breaking it hurts no other
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.faults.next_fault(self.command, self.path)
        if fault == "unavailable":
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.send_header("Connection", "close")
            self.end_headers()
        elif fault != "lost request":
            self._answer(fault, body)

    def _answer(self, fault: Fault, body: bytes) -> None:
        connection = HTTPConnection(self.faults.upstream, timeout=20)
        headers = {name: value for name, value in self.headers.items() if name != "Expect"}
        connection.request(self.command, self.path, body or None, headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        if fault == "timeout":
            time.sleep(self.faults.stall_s)
        if fault in ("lost answer", "timeout"):
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "date", "server"):
                self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        half = len(data) // 2
        if fault == "flipped bit":
            data = data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :]
        self.wfile.write(data[:half] if fault == "cut body" else data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _forward

    def log_message(self, *args: object) -> None:
        """Say nothing."""
