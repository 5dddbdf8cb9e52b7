"""POST /generate: a prompt or messages through a base model or an adapter of the tenant."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import ConfigDict, Field, model_validator
from pydantic.config import JsonDict
from starlette.requests import ClientDisconnect

from api.auth import TenantId
from api.bodies import StrictRoute
from api.calls import in_thread
from api.completions import complete, stream
from api.envelope import Body, Envelope, Wire, absent, json_answer, refusals
from api.errors import ApiError, GeneratorFailed, Invalid, body_of
from api.rendering import base_named, contract_of, renderer_of
from api.services import FromServices, Services
from api.speaking import base_of, speaker
from api.spending import Tab, spending
from api.vllm import completion_body
from engine.bases import context_length
from engine.completions import Choice, Completion, Usage
from engine.response_format import ResponseFormat
from engine.rows import Message
from jobs.model import Adapter, new_id

router = APIRouter(tags=["generate"], route_class=StrictRoute)

T = TypeVar("T")
MAX_TOKENS = 1_048_576
HELLO: JsonDict = {
    "adapter_id": "ad_0123456789abcdef01234567",
    "messages": [{"role": "user", "content": "Hello!"}],
    "max_tokens": 64,
    "temperature": 0,
}
StopText = Annotated[str, Field(min_length=1, max_length=1024)]


SAMPLING = {
    "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "seed", "stop", "logprobs",
}  # fmt: skip


class WeightedAdapter(Body):
    """One of several adapters whose deltas are added to the base, and how much of it."""

    adapter_id: str = Field(max_length=64)
    weight: float = Field(1.0, ge=-100, le=100, allow_inf_nan=False)


class GenerateBody(Body):
    """What to answer, by which model, and how to sample."""

    model_config = ConfigDict(json_schema_extra={"examples": [HELLO]})

    adapter_id: str | None = Field(None, max_length=64)
    adapters: tuple[WeightedAdapter, ...] | None = Field(
        None,
        min_length=1,
        max_length=8,
        description="several LoRA adapters of one base, added up; the first one's chat template",
    )
    base_model: str | None = Field(
        None, max_length=256, description="default: the adapter's, or the first of GET /models"
    )
    prompt: str | None = Field(None, min_length=1, description="raw text, encoded as it is")
    messages: tuple[Message, ...] | None = Field(
        None, max_length=512, description="a conversation, for the chat template"
    )
    max_tokens: int = Field(256, ge=1, le=MAX_TOKENS)
    temperature: float = Field(1.0, ge=0, le=2, description="0: always the likeliest token")
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int | None = Field(None, ge=1, le=1_048_576)
    min_p: float = Field(0.0, ge=0, le=1, description="of the likeliest token's probability")
    repetition_penalty: float = Field(1.0, gt=0, le=10, description="over prompt and answer")
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: StopText | Annotated[tuple[StopText, ...], Field(max_length=32)] | None = None
    stream: bool = False
    logprobs: int | None = Field(
        None, ge=0, le=20, description="of each token and of this many others"
    )
    response_format: ResponseFormat | None = Field(
        None, description="what the text is kept to; default: nothing"
    )

    @model_validator(mode="after")
    def _says_one_thing(self) -> "GenerateBody":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give exactly one of `prompt` and `messages`")
        if self.messages == ():
            raise ValueError("`messages` is empty; give at least one")
        if self.adapter_id is not None and self.adapters is not None:
            raise ValueError("give `adapter_id` or `adapters`, not both")
        return self


class Generation(Wire):
    """A whole answer."""

    object: Literal["generation"] = "generation"
    id: str
    model: str
    adapter_id: str | None
    text: str
    finish_reason: str | None
    usage: Usage
    logprobs: dict[str, Any] | None = Field(None, exclude_if=absent)


class GenerationChunk(Wire):
    """A piece of a streamed answer; the last has the finish reason and the usage."""

    object: Literal["generation.chunk"] = "generation.chunk"
    id: str
    text: str
    logprobs: dict[str, Any] | None = Field(None, exclude_if=absent)
    finish_reason: str | None = Field(None, exclude_if=absent)
    usage: Usage | None = Field(None, exclude_if=absent)


@dataclass(frozen=True)
class Asked:
    """A request in the inference server's words, and what the answer will say about it."""

    base: str
    adapter_id: str | None
    body: dict[str, Any]
    most_tokens: int


@router.post(
    "/generate",
    response_model=Generation,
    responses=refusals(404, 429, 502)
    | {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def generate(
    body: GenerateBody, request: Request, tenant_id: TenantId, services: FromServices
) -> Response:
    """Generate. With `stream`, chunks as server-sent events, ended by `data: [DONE]`."""
    asked = await in_thread(ask, services, tenant_id, body)
    spent = spending(services.store, tenant_id, asked.most_tokens)
    if body.stream:
        pieces = stream(services.http, asked.body)
        async with AsyncExitStack() as stack:
            tab = await stack.enter_async_context(spent)
            # Waiting for the first piece turns a refusal into a status, not a broken stream.
            first = await unless_gone(request, _first(pieces))
            frames = _frames(first, pieces, tab, stack.pop_all())
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(frames, media_type="text/event-stream", headers=headers)
    async with spent as tab:
        answer = await unless_gone(request, complete(services.http, asked.body))
        made = _generation(asked, answer)
        tab.settle(made.usage)
    return json_answer(made)


def ask(services: Services, tenant_id: str, body: GenerateBody) -> Asked:
    """Render under the adapter's own contract. Raises NotFound, Invalid, RenderError."""
    base_name, contract = body.base_model, None
    adapters = _adapters(services, tenant_id, body)
    if adapters:
        base_name, contract = base_of(adapters, body.base_model), contract_of(adapters[0])
    base = base_named(services.bases, base_name)
    renderer = renderer_of(base, contract)
    text = body.prompt if body.messages is None else body.messages
    assert text is not None, "the body has one of the two"
    sampling = body.model_dump(mode="json", include=SAMPLING)
    wire: dict[str, Any] = {
        name: value for name, value in sampling.items() if value is not None
    } | {
        "model": body.adapter_id or base.name,
        "prompt": renderer.prompt_ids(text),
        "stop_token_ids": list(renderer.contract.stop_token_ids),
        "user": tenant_id,
        **_kept_to(body),
    }
    if body.adapters is not None:
        wire["adapters"] = [{"id": a.adapter_id, "weight": a.weight} for a in body.adapters]
    context = context_length(base.path)
    most = min(len(wire["prompt"]) + body.max_tokens, context or MAX_TOKENS)
    if services.settings.generator == "vllm":
        wire = completion_body(wire, tenant_id, context)
    return Asked(base.name, body.adapter_id, wire, most)


def _adapters(services: Services, tenant_id: str, body: GenerateBody) -> list[Adapter]:
    """Those that the request names, each of them one that generates."""
    if body.adapter_id is not None:
        return [speaker(services, tenant_id, body.adapter_id, "adapter_id")]
    if body.adapters is None:
        return []
    if services.settings.generator == "vllm":
        text = "vLLM takes one adapter a request; make one of several by POST /adapters/merge."
        raise Invalid(text, param="adapters")
    return [
        speaker(services, tenant_id, each.adapter_id, f"adapters.{number}.adapter_id")
        for number, each in enumerate(body.adapters)
    ]


def _kept_to(body: GenerateBody) -> dict[str, Any]:
    """The format as Luthier's server and vLLM take it; text needs none."""
    format = body.response_format
    if format is None or format.type == "text":
        return {}
    return {"response_format": format.model_dump(mode="json", exclude_none=True)}


def _generation(asked: Asked, answer: Completion) -> Generation:
    if not answer.choices or answer.usage is None:
        raise GeneratorFailed("The inference server's answer has no text or no usage.")
    choice = answer.choices[0]
    return Generation(
        id=new_id("gen"),
        model=asked.base,
        adapter_id=asked.adapter_id,
        text=choice.text,
        finish_reason=choice.finish_reason,
        usage=answer.usage,
        logprobs=choice.logprobs,
    )


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
    tab: Tab,
    spent: AsyncExitStack,
) -> AsyncIterator[bytes]:
    """The stream as ours. An error in the middle is its last event, in the envelope."""
    id, reason, usage = new_id("gen"), None, None
    tab.begun = True
    try:
        async with spent, aclosing(pieces):
            piece = first
            while piece is not None:
                if piece.usage is not None:
                    usage = piece.usage
                    tab.settle(usage)
                for choice in piece.choices:
                    reason = choice.finish_reason or reason
                    if choice.text or choice.logprobs:
                        yield _frame(_chunk(id, choice))
                piece = await anext(pieces, None)
        yield _frame(GenerationChunk(id=id, text="", finish_reason=reason, usage=usage))
        yield b"data: [DONE]\n\n"
    except ApiError as error:
        yield _frame(Envelope(error=body_of(error)))


def _chunk(id: str, choice: Choice) -> GenerationChunk:
    return GenerationChunk(id=id, text=choice.text, logprobs=choice.logprobs)


def _frame(content: Wire) -> bytes:
    return f"data: {content.model_dump_json()}\n\n".encode()
