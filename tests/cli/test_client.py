"""The commands' HTTP client against a server that answers as it is told."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from cli.client import Client
from cli.failure import CommandFailed

Answer = Callable[[BaseHTTPRequestHandler], None]


@pytest.fixture
def client_of() -> Iterator[Callable[[Answer], Client]]:
    """A client of a server whose every answer is the given function's."""
    servers: list[tuple[ThreadingHTTPServer, threading.Thread]] = []
    clients: list[Client] = []

    def start(answer: Answer) -> Client:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        servers.append((server, thread))
        clients.append(Client(f"http://127.0.0.1:{server.server_port}", "lk_secret"))
        return clients[-1]

    yield start
    for client in clients:
        client.__exit__(None, None, None)
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes) -> None:
    handler.send_response(status)
    handler.send_header("content-length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def envelope(**error: Any) -> bytes:
    return json.dumps({"error": {"type": "t", "param": None, "code": "c", **error}}).encode()


def test_an_error_keeps_its_words_and_its_problems(
    client_of: Callable[[Answer], Client],
) -> None:
    problems = [
        {"line": 3, "field": "messages.0.role", "message": "not a role"},
        {"line": None, "field": "seed", "message": "too large"},
    ]
    body = envelope(message="30 problems", problems=problems, total_problems=30)
    client = client_of(lambda handler: send(handler, 422, body))

    with pytest.raises(CommandFailed, match="30 problems") as failure:
        client.get("/datasets")

    assert failure.value.details == (
        "line 3, messages.0.role: not a role",
        "seed: too large",
        "... and 28 more",
    )


def test_several_problems_are_not_told_twice(client_of: Callable[[Answer], Client]) -> None:
    problems = [{"line": n, "field": "text", "message": "is empty"} for n in (3, 4)]
    body = envelope(message="line 3, text: is empty (and 1 more)", problems=problems)
    client = client_of(lambda handler: send(handler, 422, body))

    with pytest.raises(CommandFailed, match=r"^2 problems:$") as failure:
        client.get("/datasets")

    assert failure.value.details == ("line 3, text: is empty", "line 4, text: is empty")


def test_a_server_that_is_not_luthier_is_not_believed(
    client_of: Callable[[Answer], Client],
) -> None:
    client = client_of(lambda handler: send(handler, 502, b"<html>"))

    with pytest.raises(CommandFailed, match="status 502, and not as Luthier does"):
        client.get("/jobs")


def test_nobody_there_says_what_to_do() -> None:
    with (
        Client("http://127.0.0.1:9", "lk_secret") as client,
        pytest.raises(CommandFailed, match=r"\(connection refused\)\. Start a service with"),
    ):
        client.get("/jobs")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"mixture": [{"weight": 1.0}, {"weight": float("nan")}]}, "mixture.1.weight is nan or"),
        ({"method": {"learning_rate": float("-inf")}}, "method.learning_rate is nan or infinite"),
        ({"prompt": "caf\udce9"}, "is not UTF-8"),
    ],
)
def test_what_json_has_no_word_for_is_told_before_it_is_sent(
    body: dict[str, Any], said: str
) -> None:
    with Client("http://127.0.0.1:9", "lk_secret") as client:
        with pytest.raises(CommandFailed, match=said):
            client.post("/jobs", body)
        with pytest.raises(CommandFailed, match=said):
            next(client.generate(body))


def test_pages_are_turned_until_there_are_enough(client_of: Callable[[Answer], Client]) -> None:
    asked = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        number = len(asked)
        data = [{"id": f"{number}-{i}"} for i in range(100 if number == 1 else 20)]
        send(handler, 200, json.dumps({"data": data, "has_more": True}).encode())

    found = client_of(answer).pages("/jobs", limit=120)

    assert len(found) == 120
    assert asked == ["/jobs?limit=100", "/jobs?after=1-99&limit=20"]


def test_a_cut_stream_of_events_is_taken_up_where_it_broke(
    client_of: Callable[[Answer], Client],
) -> None:
    resumed_after = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        last = int(handler.headers["last-event-id"])
        resumed_after.append(last)
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream")
        whole = last >= 2
        events = range(last + 1, 5 if whole else 3)
        body = b": hello\n\n" + b"".join(b'id: %d\ndata: {"seq": %d}\n\n' % (n, n) for n in events)
        handler.send_header("content-length", str(len(body) + (0 if whole else 10)))
        handler.end_headers()
        handler.wfile.write(body)

    seen = [event["seq"] for event in client_of(answer).events("job_1")]

    assert seen == [1, 2, 3, 4]
    assert resumed_after == [0, 2]


def test_the_key_goes_with_every_request(client_of: Callable[[Answer], Client]) -> None:
    seen = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        seen.append(handler.headers["authorization"])
        send(handler, 200, b"{}")

    client_of(answer).get("/jobs")

    assert seen == ["Bearer lk_secret"]
