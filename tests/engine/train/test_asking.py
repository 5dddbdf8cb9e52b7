"""A step's questions to the inference server: all at once, and patiently, but not for ever."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from engine.graders import GradingFault, Verdict
from engine.train import asking
from engine.train.asking import AT_ONCE, Generator
from engine.train.errors import StopRequested, TrainingFailed
from tests import clock
from tests.api.serving import serve
from tests.engine.train.runs import Reports


class Server:
    """Says the body's `prompt` back; the first answers may be others."""

    def __init__(self) -> None:
        self.first: list[Response | None] = []
        self.pause_s = 0.0
        self.requests = self.running = self.most = 0
        self.app = Starlette(routes=[Route("/v1/completions", self._complete, methods=["POST"])])

    async def _complete(self, request: Request) -> Response:
        body = await request.json()
        self.requests += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            given = self.first.pop(0) if self.first else None
            await asyncio.sleep(self.pause_s)
            return given or JSONResponse({"choices": [{"text": body["prompt"]}]})
        finally:
            self.running -= 1


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def url(server: Server) -> Iterator[str]:
    with serve(server.app) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def link(tmp_path: Any) -> Reports:
    return Reports(tmp_path, "continue")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "FIRST_WAIT_S", 0.05)


def generator(url: str, link: Reports, patience_s: float = 5.0) -> Generator:
    return Generator(url, "", patience_s, link)  # type: ignore[arg-type]  # as Link is


def bodies(count: int) -> list[dict[str, Any]]:
    return [{"prompt": str(number)} for number in range(count)]


def refusal(status: int, message: str = "no") -> Response:
    return JSONResponse({"error": {"message": message}}, status)


def test_answers_come_in_the_order_of_the_questions_and_a_bounded_number_is_asked_at_once(
    server: Server, url: str, link: Reports
) -> None:
    server.pause_s = 0.1
    said = generator(url, link).ask(bodies(3 * AT_ONCE))
    assert said == [Verdict(text=str(number)) for number in range(3 * AT_ONCE)]
    assert 1 < server.most <= AT_ONCE


@pytest.mark.parametrize(
    "trouble",
    [refusal(503), refusal(429), refusal(500), JSONResponse({}), JSONResponse({"choices": 1})],
    ids=["away", "full", "broken", "empty", "odd"],
)
def test_what_may_pass_is_tried_again_and_told_once(
    server: Server, url: str, link: Reports, trouble: Response
) -> None:
    server.first = [trouble, trouble]
    assert generator(url, link).ask(bodies(2)) == [Verdict(text="0"), Verdict(text="1")]
    assert server.requests == 4
    (warning,) = link.warnings
    assert "training waits for it" in warning


def test_a_server_that_stays_away_fails_the_attempt_and_not_the_job(link: Reports) -> None:
    url = "http://user:secret@127.0.0.1:9"
    began = clock.now()
    with pytest.raises(TrainingFailed, match=r"was away \(ConnectError\) for more than 1 s") as end:
        generator(url, link, patience_s=1).ask(bodies(1))
    assert clock.now() - began < 5
    assert (end.value.code, end.value.retryable) == ("judge_unavailable", True)
    assert "secret" not in f"{end.value} {end.value.__cause__} {link.warnings}"


def test_a_question_that_is_refused_is_a_fault_of_its_sample_alone(
    server: Server, url: str, link: Reports
) -> None:
    server.first = [refusal(400, "The prompt is too long.")]
    said = generator(url, link).ask(bodies(3))
    faults = [each for each in said if isinstance(each, GradingFault)]
    assert [(fault.kind, str(fault)) for fault in faults] == [
        ("model_grader_server_error", "The prompt is too long.")
    ]
    assert len(said) == 3
    assert link.warnings == []


@pytest.mark.parametrize("status", [401, 404, 422])
def test_a_judge_that_is_refused_ends_the_job_with_the_servers_words(
    server: Server, url: str, link: Reports, status: int
) -> None:
    server.first = [refusal(status, "Model 'x' does not exist.")]
    with pytest.raises(TrainingFailed, match="Model 'x' does not exist") as end:
        generator(url, link).ask(bodies(1))
    assert (end.value.code, end.value.retryable) == ("judge_refused", False)
    assert server.requests == 1


def later(change: Callable[[], None]) -> None:
    threading.Timer(0.2, change).start()


@pytest.mark.parametrize("away", [True, False], ids=["away", "slow"])
@pytest.mark.parametrize("directive", ["cancel", "pause"])
def test_a_stop_does_not_wait_for_the_judge(
    server: Server,
    url: str,
    link: Reports,
    monkeypatch: pytest.MonkeyPatch,
    directive: str,
    away: bool,
) -> None:
    monkeypatch.setattr(asking, "PAUSE_S", 0.5)
    server.pause_s = 3.0
    later(lambda: setattr(link, "directive", directive))
    began = clock.now()
    with pytest.raises(StopRequested, match=directive):
        generator("http://127.0.0.1:9" if away else url, link).ask(bodies(20))
    assert clock.now() - began < 2


def test_a_pause_lets_a_step_have_its_rewards(server: Server, url: str, link: Reports) -> None:
    server.pause_s, link.directive = 0.5, "pause"
    assert generator(url, link).ask(bodies(1)) == [Verdict(text="0")]
