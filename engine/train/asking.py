"""The inference server as a judge while a job trains: a step's questions, all at once over HTTP."""

import asyncio
import ssl
import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import httpx
from pydantic import ValidationError

from engine.completions import PATH, Completion, Refused
from engine.errors import EngineError
from engine.graders import GradingFault, Verdict
from engine.plan import Warned
from engine.train.errors import StopRequested, TrainingFailed
from engine.train.link import Link

AT_ONCE = 16  # requests; the server runs some 32 sequences at a time, and has other clients
TIMEOUT = httpx.Timeout(300.0, connect=2.0)  # a judge may think for long, but it is there at once
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 8.0  # before a request is sent again; doubled each time
WATCH_S = 0.1
PAUSE_S = 10.0  # a step that is to be paused has so long to get its rewards

Said = Verdict | GradingFault


class Away(EngineError):
    """No answer for a reason that may pass, in words for the client."""


class Generator:
    """Asks the inference server at `url`, which may be away for `patience_s` at a time."""

    def __init__(self, url: str, key: str, patience_s: float, link: Link) -> None:
        self._url, self._patience_s, self._link = url, patience_s, link
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._warned = False

    def ask(self, bodies: Sequence[dict[str, Any]]) -> list[Said]:
        """What each body's model says, in their order; a fault where its question was refused.

        Raises StopRequested when the runner says so: at once for a cancel, after PAUSE_S for a
        pause. Raises TrainingFailed, which is retryable where the server stayed away.
        """
        return asyncio.run(self._ask(bodies))

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        """Made once: it reads every certificate authority from disk."""
        return httpx.create_ssl_context(trust_env=False)

    async def _ask(self, bodies: Sequence[dict[str, Any]]) -> list[Said]:
        gate = asyncio.Semaphore(AT_ONCE)
        async with httpx.AsyncClient(
            base_url=self._url,
            headers=self._headers,
            timeout=TIMEOUT,
            verify=self._tls,
            trust_env=False,
        ) as http:
            calls = [asyncio.create_task(self._answer(http, gate, body)) for body in bodies]
            stopped = asyncio.create_task(self._stopped())
            answers = asyncio.gather(*calls)
            try:
                await asyncio.wait({answers, stopped}, return_when=asyncio.FIRST_COMPLETED)
                return answers.result() if answers.done() else stopped.result()
            finally:
                for task in (*calls, stopped):
                    task.cancel()
                await asyncio.gather(answers, *calls, stopped, return_exceptions=True)

    async def _stopped(self) -> list[Said]:
        """Returns never: raises StopRequested once the runner has asked for it."""
        paused_at: float | None = None
        while True:
            asked, now = self._link.directive, time.monotonic()
            if asked == "cancel":
                raise StopRequested("cancel")
            if asked == "pause":
                paused_at = now if paused_at is None else paused_at
                if now - paused_at >= PAUSE_S:
                    raise StopRequested("pause")
            await asyncio.sleep(WATCH_S)

    async def _answer(
        self, http: httpx.AsyncClient, gate: asyncio.Semaphore, body: dict[str, Any]
    ) -> Said:
        async with gate:
            away_since: float | None = None
            wait_s = FIRST_WAIT_S
            while True:
                began = time.monotonic()
                try:
                    return await _post(http, body)
                except Away as away:
                    away_since = began if away_since is None else away_since
                    self._heed(away, time.monotonic() + wait_s - away_since)
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    def _heed(self, away: Away, away_s: float) -> None:
        """Tell of it once; raise TrainingFailed when the next try would come too late."""
        if away_s > self._patience_s:
            raise TrainingFailed(
                "judge_unavailable",
                f"The inference server, which runs the grader's judge, was away ({away}) for more "
                f"than {self._patience_s:g} s; the job goes on from its last checkpoint when it is "
                "tried again.",
                retryable=True,
            ) from away
        if not self._warned:
            self._warned = True
            self._link.send(
                Warned(
                    message=f"The inference server, which runs the grader's judge, is away ({away})"
                    f"; training waits for it, for {self._patience_s:g} s at most."
                )
            )


async def _post(http: httpx.AsyncClient, body: dict[str, Any]) -> Said:
    """One request. Raises Away and TrainingFailed."""
    try:
        answer = await http.post(PATH, json=body)
    except httpx.RequestError as error:
        raise Away(type(error).__name__) from None  # its text may have the URL in it
    if answer.status_code in (408, 429) or answer.is_server_error:
        raise Away(f"status {answer.status_code}")
    if answer.status_code == 400:  # this question, such as one that is too long
        return GradingFault("model_grader_server_error", _told(answer))
    if not answer.is_success:
        raise TrainingFailed(
            "judge_refused", f"The grader's judge cannot be asked: {_told(answer)}"
        )
    try:
        said = Completion.model_validate_json(answer.content)
    except ValidationError:
        raise Away("an answer that is no completion") from None
    if not said.choices:
        raise Away("a completion without a text")
    return Verdict(text=said.choices[0].text)


def _told(answer: httpx.Response) -> str:
    """The refusal in the server's own words, where it has some."""
    try:
        return Refused.model_validate_json(answer.content).error.message
    except ValidationError:
        return f"the inference server answers with status {answer.status_code}."
