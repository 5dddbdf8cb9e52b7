"""/generate over real sockets: pieces as they are made, and clients that go away."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from api.app import create_app
from api.services import open_services
from jobs.settings import Settings
from tests.api.inference import Inference
from tests.api.serving import serve, wait_until

BODY = {"messages": [{"role": "user", "content": "say"}], "stream": True}


@pytest.fixture
def inference() -> Inference:
    return Inference()


@pytest.fixture
def browser(settings: Settings, inference: Inference) -> Iterator[httpx.Client]:
    with serve(inference.app) as inference_port:
        url = f"http://127.0.0.1:{inference_port}"
        services = open_services(settings.model_copy(update={"inference_url": url}))
        key, _ = services.store.tenants.issue_key(services.store.tenants.create("ours").id, "test")
        with serve(create_app(services)) as port:
            headers = {"authorization": f"Bearer {key}"}
            with httpx.Client(
                base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60
            ) as browser:
                yield browser


def test_pieces_arrive_as_they_are_made(browser: httpx.Client, inference: Inference) -> None:
    inference.pause_s = 60.0  # the second piece does not come before the client has left
    with browser.stream("POST", "/generate", json=BODY) as answer:
        lines = answer.iter_lines()  # kept: it closes the connection when it is gone
        first = next(lines)
        assert inference.open_streams == 1
    assert "one" in first


def test_a_client_that_goes_away_stops_the_stream_behind_it(
    browser: httpx.Client, inference: Inference
) -> None:
    inference.pieces = [{"choices": [{"text": "x"}]}] * 10_000
    inference.pause_s = 0.02
    with browser.stream("POST", "/generate", json=BODY) as answer:
        next(answer.iter_lines())
    wait_until(lambda: inference.open_streams == 0)


def test_a_client_that_leaves_before_the_first_piece_stops_it_too(
    browser: httpx.Client, inference: Inference
) -> None:
    inference.pieces = [": thinking"] * 10_000
    inference.pause_s = 0.02
    leave(browser, BODY, when=lambda: inference.open_streams == 1)
    wait_until(lambda: inference.open_streams == 0)


def test_a_client_that_leaves_a_whole_answer_stops_it_too(
    browser: httpx.Client, inference: Inference
) -> None:
    inference.pause_s = 0.1
    inference.patience = 3000
    leave(browser, BODY | {"stream": False}, when=lambda: len(inference.asked) == 1)
    wait_until(lambda: inference.given_up == 1)


def leave(browser: httpx.Client, body: dict[str, Any], *, when: Callable[[], bool]) -> None:
    """Ask for an answer, and close the connection without it as soon as `when` is true."""

    async def ask() -> None:
        async with httpx.AsyncClient(
            base_url=browser.base_url, headers=browser.headers, timeout=60
        ) as client:
            asking = asyncio.create_task(client.post("/generate", json=body))
            await asyncio.to_thread(wait_until, when)
            assert not asking.done(), "the answer came before the client could leave"
            asking.cancel()
            await asyncio.wait([asking])

    asyncio.run(ask())
