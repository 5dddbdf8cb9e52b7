"""The client of the inference server: OpenAI's /v1/completions, plain and streamed, and scores."""

import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, FiniteFloat, ValidationError

from api.envelope import ErrorBody
from api.errors import GeneratorFailed, GeneratorRefused, GeneratorUnavailable, type_of
from api.vllm import name_of
from engine.completions import PATH, Completion, Models, Refused, ServerAnswer, Usage

SCORE_PATH = "/v1/score"
MODELS_PATH = "/v1/models"
MODELS_TIMEOUT_S = 2.0
M = TypeVar("M", bound=BaseModel)


class Score(ServerAnswer):
    index: int
    score: FiniteFloat


class Scores(ServerAnswer):
    """A reward model's answer: a scalar for each input."""

    data: tuple[Score, ...]
    usage: Usage


async def complete(http: httpx.AsyncClient, body: dict[str, Any]) -> Completion:
    """The whole answer. Raises GeneratorUnavailable, GeneratorRefused and GeneratorFailed."""
    return await _post(http, PATH, body, Completion)


async def score(http: httpx.AsyncClient, model: str, inputs: Sequence[Sequence[int]]) -> Scores:
    """The score of each sequence of token ids, in their order; raises what `complete` does."""
    body = {"model": model, "inputs": [list(ids) for ids in inputs]}
    found = await _post(http, SCORE_PATH, body, Scores)
    if [each.index for each in found.data] != list(range(len(inputs))):
        raise GeneratorFailed("The inference server's answer has not one score for each input.")
    return found


async def bases_served(http: httpx.AsyncClient) -> frozenset[str] | None:
    """The base models that the inference server has loaded; None while it does not say."""
    try:
        answer = await http.get(MODELS_PATH, timeout=MODELS_TIMEOUT_S)
        found = Models.model_validate_json(answer.content)
    except (httpx.TransportError, ValidationError):
        return None
    return frozenset(model.id for model in found.data if model.parent is None)


async def _post(http: httpx.AsyncClient, path: str, body: dict[str, Any], kind: type[M]) -> M:
    try:
        answer = await http.post(path, json=body)
    except httpx.TransportError as error:
        raise _unavailable(error) from error
    if answer.is_error:
        raise _refused(answer.status_code, answer.content)
    return _parsed(kind, answer.content)


async def stream(http: httpx.AsyncClient, body: dict[str, Any]) -> AsyncGenerator[Completion, None]:
    """The answer piece by piece; raises what `complete` does, also in the middle."""
    asked = body | {"stream": True, "stream_options": {"include_usage": True}}
    try:
        async with http.stream("POST", PATH, json=asked) as answer:
            if answer.is_error:
                raise _refused(answer.status_code, await answer.aread())
            async for line in answer.aiter_lines():
                data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
                if data == "[DONE]":
                    return
                if data:
                    yield _piece(data.encode())
    except httpx.TransportError as error:
        raise _unavailable(error) from error
    raise GeneratorFailed("The inference server's answer broke off; try again.")


def _piece(data: bytes) -> Completion:
    if b'"error"' in data and "error" in _object(data):
        raise _refused(502, data)
    return _parsed(Completion, data)


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _parsed(kind: type[M], data: bytes) -> M:
    try:
        return kind.model_validate_json(data)
    except ValidationError:
        raise GeneratorFailed(
            "The inference server's answer is not in the shape that was asked for."
        ) from None


def _refused(status: int, data: bytes) -> GeneratorRefused:
    """The server's own refusal; its faults (5xx, but not 503) are a bad gateway's here."""
    refusal = _parsed(Refused, data).error
    if isinstance(refusal.code, int):
        param, code = name_of(refusal.code, refusal.param)
        refusal = refusal.model_copy(update={"param": param, "code": code})
    status = status if status < 500 or status == 503 else 502
    body = ErrorBody(
        message=refusal.message,
        type=type_of(status),
        param=refusal.param,
        code=refusal.code or "generator_refused",
    )
    return GeneratorRefused(status, body)


def _unavailable(error: httpx.TransportError) -> GeneratorUnavailable:
    return GeneratorUnavailable(
        f"The inference server does not answer ({type(error).__name__}); try again in a moment."
    )
