"""A real HTTP receiver of webhooks on loopback, which answers as it is told."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from tests.api.serving import wait_until


class Got(NamedTuple):
    headers: dict[str, str]
    body: bytes


Answer = Callable[[BaseHTTPRequestHandler, int], None]


def with_status(*statuses: int) -> Answer:
    """These one after another; the last for ever."""

    def answer(handler: BaseHTTPRequestHandler, number: int) -> None:
        handler.send_response(statuses[min(number, len(statuses)) - 1])
        handler.send_header("content-length", "0")
        handler.end_headers()

    return answer


class Receiver:
    def __init__(self, url: str) -> None:
        self.url = url
        self.got: list[Got] = []
        self.answer: Answer = with_status(200)

    def wait_for(self, count: int) -> list[Got]:
        wait_until(lambda: len(self.got) >= count)
        return self.got


@contextmanager
def receiving() -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            receiver.got.append(Got(headers, body))
            receiver.answer(self, len(receiver.got))

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # who was cut off
        server.daemon_threads = True
        receiver = Receiver(f"http://127.0.0.1:{server.server_port}/hook")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield receiver
        server.shutdown()
        thread.join()
