"""From a request for scores to the engine and back."""

from typing import Any

from engine.infer.admission import Admission
from engine.infer.errors import RequestInvalid
from engine.infer.events import EventQueue
from engine.infer.generator import Failed, Generator, Scored, ScoreRequest
from engine.infer.loader import Served
from engine.infer.metrics import Metrics
from engine.infer.residency import Residency
from engine.infer.score_wire import ScoreBody


class Scores:
    """Runs requests for scores on a generator, admitted together with what generates."""

    def __init__(
        self, generator: Generator, residency: Residency, admission: Admission, metrics: Metrics
    ) -> None:
        self._generator, self._residency = generator, residency
        self._admission, self._metrics = admission, metrics

    async def run(self, body: ScoreBody) -> dict[str, Any]:
        """The wire form of the answer; cancel it to cancel what still runs. Raises EngineErrors."""
        with self._admission.hold(1, param="inputs"):  # one at a time, whatever their number
            async with self._residency.use(body.model) as served:
                request = _request(served, body)
                tokens = sum(map(len, request.inputs))
                self._metrics.tokens_in.inc(tokens)
                scores = await self._scores(request)
        return {
            "model": body.model,
            "data": [{"index": index, "score": score} for index, score in enumerate(scores)],
            "usage": {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens},
        }

    async def _scores(self, request: ScoreRequest) -> tuple[float, ...]:
        events = EventQueue()
        ticket = self._generator.submit(request, events.sink(0))
        try:
            _, event = await events.get()
        finally:
            ticket.cancel()
        if isinstance(event, Failed):
            raise event.error
        assert isinstance(event, Scored)
        return event.scores


def _request(served: Served, body: ScoreBody) -> ScoreRequest:
    """Raises RequestInvalid, also for a model that has no head."""
    if served.head is None:
        raise RequestInvalid(
            f"Model {served.name!r} generates and has no head to score with; name an adapter that "
            "method `reward` made, or ask it for text with POST /v1/completions.",
            param="model",
            code="adapter_cannot_score",
            status=422,
        )
    for number, ids in enumerate(body.inputs):
        _check(served, ids, f"inputs.{number}")
    return ScoreRequest(served.model, served.lora, served.head, tuple(map(tuple, body.inputs)))


def _check(served: Served, ids: list[int], param: str) -> None:
    vocabulary, context = served.model.vocabulary, served.model.context_length
    if max(ids) >= vocabulary:
        raise RequestInvalid(
            f"Token id {max(ids)} is not in the model's vocabulary of {vocabulary}; encode the "
            "input with the model's own tokenizer.",
            param=param,
            code="invalid_token_id",
        )
    if len(ids) > context:
        raise RequestInvalid(
            f"The prompt and its answer have {len(ids)} tokens and the model's context holds "
            f"{context}; shorten them.",
            param=param,
            code="context_length_exceeded",
        )
