"""The routes of the inference server: OpenAI's completions, and scores, with ids as `model`."""

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any

import structlog
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.types import Receive, Scope, Send

from engine.infer.choice import Choice
from engine.infer.completions import Answer, Completions
from engine.infer.connection import ClientGone, read_body, while_connected
from engine.infer.envelope import problem_of
from engine.infer.loader import Served
from engine.infer.metrics import Metrics
from engine.infer.residency import Residency
from engine.infer.scheduler import Scheduler
from engine.infer.score_wire import ScoreBody
from engine.infer.scores import Scores
from engine.infer.wire import CompletionRequest, parse_request

log = structlog.get_logger()
router = APIRouter()

_CLIENT_GONE = 499  # nobody reads it; access logs show it
_Run = AsyncGenerator[tuple[Answer, Choice | None], None]


@dataclass(frozen=True, slots=True)
class Engine:
    """The running parts of one server."""

    base: Served
    scheduler: Scheduler
    residency: Residency
    completions: Completions
    scores: Scores
    metrics: Metrics
    started_at: int


@router.post("/v1/completions")
async def post_completions(request: Request) -> Response:
    engine = _engine(request)
    with _counting(engine.metrics):
        body = parse_request(CompletionRequest, await read_body(request))
        run = engine.completions.run(body)
        if not body.stream:
            whole = await while_connected(request, _whole(run))
            engine.metrics.requests.labels("ok").inc()
            return JSONResponse(whole)
        answer, _ = await while_connected(request, run.__anext__())
        return _EventStream(run, answer, body, engine.metrics)


@router.post("/v1/score")
async def post_score(request: Request) -> Response:
    """A reward model's scalars, one for each prompt with its answer."""
    engine = _engine(request)
    with _counting(engine.metrics):
        body = parse_request(ScoreBody, await read_body(request))
        answer = await while_connected(request, engine.scores.run(body))
        engine.metrics.requests.labels("ok").inc()
        return JSONResponse(answer)


@router.get("/v1/models")
async def get_models(request: Request) -> dict[str, Any]:
    """The base and the adapters that are in memory; others load when first asked for."""
    engine = _engine(request)
    base = engine.base
    names = [(base.name, None), *((name, base.name) for name in engine.residency.resident())]
    return {
        "object": "list",
        "data": [
            {
                "id": name,
                "object": "model",
                "created": engine.started_at,
                "owned_by": "luthier",
                "parent": parent,
                "max_model_len": base.model.context_length,
            }
            for name, parent in names
        ],
    }


@router.get("/health")
async def get_health(request: Request) -> JSONResponse:
    """200 while the model is loaded and the engine's thread runs."""
    engine = _engine(request)
    alive = engine.scheduler.alive
    return JSONResponse(
        {"status": "ok" if alive else "failed", "model": engine.base.name}, 200 if alive else 503
    )


@router.get("/metrics")
async def get_metrics(request: Request) -> Response:
    return Response(
        generate_latest(_engine(request).metrics.registry), media_type=CONTENT_TYPE_LATEST
    )


async def refuse(request: Request, error: Exception) -> Response:
    """Every error as the one envelope."""
    response = problem_of(error).response()
    # Errors that nobody expected are answered outside of the middleware.
    response.headers["x-request-id"] = request.scope["request_id"]
    return response


async def leave(request: Request, error: Exception) -> Response:
    """ClientGone: nobody reads this answer."""
    return Response(status_code=_CLIENT_GONE)


@contextmanager
def _counting(metrics: Metrics) -> Iterator[None]:
    """Count the request by what ended it, unless it ended well."""
    try:
        yield
    except ClientGone:
        metrics.requests.labels("cancelled").inc()
        raise
    except Exception as error:
        metrics.requests.labels(problem_of(error).code).inc()
        raise


def _engine(request: Request) -> Engine:
    engine: Engine = request.app.state.engine
    return engine


async def _whole(run: _Run) -> dict[str, Any]:
    """The answer once all its choices are finished."""
    async with aclosing(run):
        async for answer, _ in run:  # noqa: B007  # the last one is used
            pass
    # Long echoes with log-probs take a while: off the event loop.
    choices = await asyncio.to_thread(lambda: [choice.take() for choice in answer.choices])
    return {**answer.wire(choices), "usage": answer.usage()}


class _EventStream(StreamingResponse):
    """The answer as server-sent events. However it ends, what still runs is cancelled."""

    def __init__(
        self, run: _Run, answer: Answer, body: CompletionRequest, metrics: Metrics
    ) -> None:
        self._run, self._metrics, self._outcome = run, metrics, "cancelled"
        super().__init__(
            self._events(answer, body.includes_usage),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._run.aclose()
            self._metrics.requests.labels(self._outcome).inc()

    async def _events(self, answer: Answer, with_usage: bool) -> AsyncGenerator[str, None]:
        extra = {"usage": None} if with_usage else {}
        try:
            async for _, choice in self._run:
                if choice is not None and choice.has_news:
                    yield _event({**answer.wire([choice.take()]), **extra})
            if with_usage:
                yield _event({**answer.wire([]), "usage": answer.usage()})
            self._outcome = "ok"
        except Exception as error:  # the edge of a request, whose status has been sent already
            problem = problem_of(error)
            if problem.code == "internal_error":
                log.exception("inference.stream_failed")
            self._outcome = problem.code
            yield _event(problem.body())
        yield "data: [DONE]\n\n"


def _event(payload: dict[str, Any]) -> str:
    return f"data: {json.dumps(payload, ensure_ascii=False, separators=(',', ':'))}\n\n"
