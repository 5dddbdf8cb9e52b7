"""Clients that send ten bytes a second: half of them never end a head, half of them a body."""

import select
import socket
import threading
import time

HEAD = b"GET /jobs HTTP/1.1\r\nHost: luthier.test\r\nX-Slow: "
BODY = (
    b"POST /jobs HTTP/1.1\r\nHost: luthier.test\r\nContent-Length: 9999\r\nAuthorization: Bearer "
)
PIECE = b"x"
EVERY_S = 0.1


class SlowClients:
    """Connections that drip from a thread until the block ends; `held_s` is how long each was."""

    def __init__(self, port: int, key: str, count: int) -> None:
        self._port, self._count = port, count
        self._begin = [HEAD, BODY + key.encode() + b"\r\n\r\n{"]
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._drip, daemon=True)
        self.held_s: list[float] = []

    def __enter__(self) -> "SlowClients":
        self._open = {self._connect(number): time.monotonic() for number in range(self._count)}
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ending.set()
        self._thread.join()
        for connection in self._open:
            connection.close()

    def _connect(self, number: int) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self._port))
        connection.sendall(self._begin[number % 2])
        return connection

    def _drip(self) -> None:
        while not self._ending.wait(EVERY_S):
            answered, _, _ = select.select(list(self._open), [], [], 0)
            for connection in list(self._open):
                if connection in answered or not self._send(connection):
                    self.held_s.append(time.monotonic() - self._open.pop(connection))
                    connection.close()

    def _send(self, connection: socket.socket) -> bool:
        try:
            connection.sendall(PIECE)
        except OSError:
            return False
        return True

    @property
    def still_held(self) -> int:
        return len(self._open)
