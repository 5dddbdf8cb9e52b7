"""A TCP door before a server: shut it, and the server is gone for those who come through it."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit, urlunsplit


class Gate:
    """Forwards a port of loopback to another while it is open. Shutting it cuts what is there."""

    def __init__(self, port: int) -> None:
        self._upstream = port
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self.port = 0

    def open(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(128)
        self.port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def shut(self) -> None:
        """From now on connections are refused, and those that were there are broken."""
        if self._listener is not None:
            # shutdown wakes the thread in accept, which a close alone would leave there
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        with self._lock:
            doomed, self._open = self._open, []
        for connection in doomed:
            _end(connection)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._upstream))
            except OSError:
                client.close()
                continue
            with self._lock:
                self._open += [client, server]
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=_pump, args=(source, sink), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            sink.sendall(data)
    except OSError:
        pass
    _end(source)
    _end(sink)


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


@contextmanager
def gate_before(url: str) -> Iterator[tuple[Gate, str]]:
    """An open gate before the server of a URL, and the URL through it."""
    parts = urlsplit(url)
    assert parts.port is not None
    gate = Gate(parts.port)
    gate.open()
    try:
        yield gate, urlunsplit(parts._replace(netloc=_through(parts.netloc, gate.port)))
    finally:
        gate.shut()


def _through(netloc: str, port: int) -> str:
    who, at, _ = netloc.rpartition("@")
    return f"{who}{at}127.0.0.1:{port}"
