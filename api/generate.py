"""POST /generate: a prompt or messages through a base model or an adapter of the tenant."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic.config import JsonDict

from api.answering import MAX_TOKENS, STREAM, Asked, as_passed_on, asked, streamed, whole
from api.auth import TenantId
from api.bodies import StrictRoute
from api.calls import in_thread
from api.envelope import Body, Wire, absent, json_answer, refusals
from api.services import FromServices, Services
from api.speaking import Voice, WeightedAdapter, voice_of
from engine.completions import Completion, Usage
from engine.response_format import ResponseFormat
from engine.rows import Message
from jobs.model import new_id

router = APIRouter(tags=["generate"], route_class=StrictRoute)

HELLO: JsonDict = {
    "adapter_id": "ad_0123456789abcdef01234567",
    "messages": [{"role": "user", "content": "Hello!"}],
    "max_tokens": 64,
    "temperature": 0,
}
StopText = Annotated[str, Field(min_length=1, max_length=1024)]
Stop = Annotated[
    Annotated[StopText, Tag("text")]
    | Annotated[tuple[StopText, ...], Field(max_length=32), Tag("texts")],
    Discriminator(lambda given: "texts" if isinstance(given, list | tuple) else "text"),
]


SAMPLING = {
    "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "seed", "stop", "logprobs",
}  # fmt: skip


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
    stop: Stop | None = None
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


@router.post(
    "/generate",
    response_model=Generation,
    responses=refusals(404, 429, 502) | STREAM,
)
async def generate(
    body: GenerateBody, request: Request, tenant_id: TenantId, services: FromServices
) -> Response:
    """Generate. With `stream`, chunks as server-sent events, ended by `data: [DONE]`."""
    voice, wire = await in_thread(ask, services, tenant_id, body)
    if body.stream:
        return await streamed(services, request, tenant_id, wire, _Chunks())
    answer, usage = await whole(services, request, tenant_id, wire)
    return json_answer(_generation(voice, body.adapter_id, answer, usage))


def ask(services: Services, tenant_id: str, body: GenerateBody) -> tuple[Voice, Asked]:
    """Render under the adapter's own contract. Raises what `voice_of` does, and RenderError."""
    voice = voice_of(services, tenant_id, body.base_model, body.adapter_id, body.adapters)
    text = body.prompt if body.messages is None else body.messages
    assert text is not None, "the body has one of the two"
    given = body.model_dump(mode="json", include=SAMPLING)
    sampling = {name: value for name, value in given.items() if value is not None}
    prompt = voice.renderer.prompt_ids(text)
    kept_to = as_passed_on(body.response_format)
    return voice, asked(services, tenant_id, voice, [prompt], sampling | kept_to)


def _generation(
    voice: Voice, adapter_id: str | None, answer: Completion, usage: Usage
) -> Generation:
    choice = answer.choices[0]
    return Generation(
        id=new_id("gen"),
        model=voice.base.name,
        adapter_id=adapter_id,
        text=choice.text,
        finish_reason=choice.finish_reason,
        usage=usage,
        logprobs=choice.logprobs,
    )


class _Chunks:
    """The stream as ours."""

    def __init__(self) -> None:
        self._id = new_id("gen")
        self._reason: str | None = None

    def piece(self, piece: Completion) -> Iterator[Wire]:
        for choice in piece.choices:
            self._reason = choice.finish_reason or self._reason
            if choice.text or choice.logprobs:
                yield GenerationChunk(id=self._id, text=choice.text, logprobs=choice.logprobs)

    def end(self, usage: Usage | None) -> Iterator[Wire]:
        yield GenerationChunk(id=self._id, text="", finish_reason=self._reason, usage=usage)
