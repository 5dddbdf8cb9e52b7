"""What every route that generates does with a request: ask, wait, count the tokens, stream."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect

from api.completions import complete, stream
from api.envelope import Envelope, Wire
from api.errors import ApiError, GeneratorFailed, body_of
from api.services import Services
from api.speaking import Voice
from api.spending import Tab, spending
from api.vllm import completion_body
from engine.bases import context_length
from engine.completions import Completion, Usage
from engine.response_format import ResponseFormat

T = TypeVar("T")
MAX_TOKENS = 1_048_576
STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}
}


@dataclass(frozen=True)
class Asked:
    """A request in the inference server's words, and the tokens that it comes to at most."""

    body: dict[str, Any]
    most_tokens: int


class Chunks(Protocol):
    """How a route words a stream: each piece of it, and what comes after the last."""

    def piece(self, piece: Completion) -> Iterable[Wire]: ...
    def end(self, usage: Usage | None) -> Iterable[Wire]: ...


def asked(
    services: Services,
    tenant_id: str,
    voice: Voice,
    prompts: Sequence[list[int]],
    sampling: dict[str, Any],
) -> Asked:
    """Token ids to continue; without `max_tokens` in `sampling`, as far as the context goes."""
    context = context_length(voice.base.path) or MAX_TOKENS
    max_tokens, n = sampling.get("max_tokens", context), sampling.get("n", 1)
    own_stops = [] if sampling.get("ignore_eos") else voice.renderer.contract.stop_token_ids
    wire: dict[str, Any] = sampling | {
        "max_tokens": max_tokens,
        "model": voice.model,
        "prompt": prompts[0] if len(prompts) == 1 else list(prompts),
        "stop_token_ids": [*own_stops, *sampling.get("stop_token_ids", ())],
        "user": tenant_id,
    }
    if voice.weights is not None:
        wire["adapters"] = [{"id": id, "weight": weight} for id, weight in voice.weights]
    most = sum(_most(len(ids), max_tokens, n, context) for ids in prompts)
    if services.settings.generator == "vllm":
        wire = completion_body(wire, tenant_id, context_length(voice.base.path))
    return Asked(wire, most)


def _most(prompt: int, max_tokens: int, n: int, context: int) -> int:
    return min(prompt + max_tokens, context) + (n - 1) * max(0, min(max_tokens, context - prompt))


def as_passed_on(format: ResponseFormat | None) -> dict[str, Any]:
    """The format as Luthier's server and vLLM take it; text needs none."""
    if format is None or format.type == "text":
        return {}
    return {"response_format": format.model_dump(mode="json", exclude_none=True)}


async def whole(
    services: Services, request: Request, tenant_id: str, asked: Asked
) -> tuple[Completion, Usage]:
    """The whole answer. Raises QuotaExceeded and what the inference server's client does."""
    async with spending(services.store, tenant_id, asked.most_tokens) as tab:
        answer = await unless_gone(request, complete(services.http, asked.body))
        if not answer.choices or answer.usage is None:
            raise GeneratorFailed("The inference server's answer has no text or no usage.")
        tab.settle(answer.usage)
    return answer, answer.usage


async def streamed(
    services: Services, request: Request, tenant_id: str, asked: Asked, chunks: Chunks
) -> StreamingResponse:
    """The answer as server-sent events, begun; raises what `whole` does until then."""
    pieces = stream(services.http, asked.body)
    async with AsyncExitStack() as stack:
        spent = spending(services.store, tenant_id, asked.most_tokens)
        tab = await stack.enter_async_context(spent)
        # Waiting for the first piece turns a refusal into a status, not a broken stream.
        first = await unless_gone(request, _first(pieces))
        frames = _frames(first, pieces, chunks, tab, stack.pop_all())
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(frames, media_type="text/event-stream", headers=headers)


async def unless_gone(request: Request, call: Coroutine[Any, Any, T]) -> T:
    """The call's result; a client that goes away cancels it."""
    working = asyncio.create_task(call)
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.wait({working, gone})


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _first(pieces: AsyncIterator[Completion]) -> Completion | None:
    return await anext(pieces, None)


async def _frames(
    first: Completion | None,
    pieces: AsyncGenerator[Completion, None],
    chunks: Chunks,
    tab: Tab,
    spent: AsyncExitStack,
) -> AsyncIterator[bytes]:
    """The stream in the route's words; an error in the middle is its last event."""
    usage = None
    tab.begun = True
    try:
        async with spent, aclosing(pieces):
            piece = first
            while piece is not None:
                if piece.usage is not None:
                    usage = piece.usage
                    tab.settle(usage)
                for chunk in chunks.piece(piece):
                    yield _frame(chunk)
                piece = await anext(pieces, None)
        for chunk in chunks.end(usage):
            yield _frame(chunk)
        yield b"data: [DONE]\n\n"
    except ApiError as error:
        yield _frame(Envelope(error=body_of(error)))


def _frame(content: Wire) -> bytes:
    return f"data: {content.model_dump_json()}\n\n".encode()
