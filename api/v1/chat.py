"""POST /v1/chat/completions: OpenAI's shape over the same services as POST /generate."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Request, Response
from pydantic import ConfigDict, Field, model_validator
from pydantic.config import JsonDict

from api.answering import STREAM, Asked, asked, streamed, whole
from api.auth import TenantId
from api.bodies import StrictRoute
from api.calls import in_thread
from api.envelope import json_answer, refusals
from api.errors import GeneratorRefused, Invalid
from api.services import FromServices, Services
from api.speaking import Voice
from api.v1.chat_answers import ChatAnswer
from api.v1.chat_shapes import ChatCompletion
from api.v1.messages import MAX_MESSAGES, ChatMessage, turns_of
from api.v1.sampling import SamplingBody, Tokens, Unheeded, refused
from api.v1.speech import speech_for
from api.v1.tools import Insisted, ToolChoice, Tools, insisted, offered
from api.v1.voices import fingerprint, voice_named
from engine.template import RenderError
from engine.unwritten import ToolsUnwritten

router = APIRouter(prefix="/v1", tags=["openai"], route_class=StrictRoute)

HELLO: JsonDict = {
    "model": "luthier-tiny",
    "messages": [{"role": "user", "content": "Hello!"}],
    "max_completion_tokens": 64,
    "temperature": 0,
}


class ChatBody(SamplingBody):
    """OpenAI's fields. What would change the answer and cannot be done is refused with the reason;
    fields that are only about OpenAI's own service (`store`, `metadata`, `service_tier`, caching,
    identifiers, `prediction`) are taken and have no effect.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [HELLO]})

    messages: tuple[ChatMessage, ...] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: Tokens | None = Field(None, description="default: the context's end")
    max_tokens: Tokens | None = Field(None, description="the older name of the same")
    logprobs: bool | None = Field(None, description="of each token")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="and of so many likeliest")
    tools: Tools | None = None
    tool_choice: ToolChoice | None = Field(
        None, description="`required`, or a function: the answer is kept to its parameters"
    )
    parallel_tool_calls: bool | None = Field(
        None, description="calls that are insisted on come one at a time in any case"
    )

    store: Unheeded = None
    metadata: Unheeded = None
    service_tier: Unheeded = None
    safety_identifier: Unheeded = None
    prompt_cache_key: Unheeded = None
    prompt_cache_options: Unheeded = None
    prompt_cache_retention: Unheeded = None
    prediction: Unheeded = None

    modalities: Annotated[
        tuple[Literal["text"], ...] | None, refused("this server writes text alone", ["text"])
    ] = None
    audio: Annotated[None, refused("this server writes text alone")] = None
    functions: Annotated[None, refused("give `tools`, which replaced it")] = None
    function_call: Annotated[None, refused("give `tool_choice`, which replaced it")] = None
    moderation: Annotated[None, refused("no model here moderates")] = None
    web_search_options: Annotated[None, refused("this server searches nowhere")] = None
    reasoning_effort: Annotated[
        None, refused("the models here have no such setting; ask for it in a message")
    ] = None
    verbosity: Annotated[
        Literal["medium"] | None,
        refused("the models here have no such setting; ask for it in a message", "medium"),
    ] = None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise ValueError("give `max_completion_tokens` or `max_tokens`, not both")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("`top_logprobs` goes with `logprobs`: true")
        return self

    def sampling(self, call: Insisted | None) -> dict[str, Any]:
        """For the inference server."""
        sampling = self.passed_on()
        most = self.max_completion_tokens or self.max_tokens
        if most is not None:
            sampling["max_tokens"] = most
        if self.logprobs:
            sampling["logprobs"] = self.top_logprobs or 0
        if call is not None:
            if "response_format" in sampling:
                text = "`tool_choice` asks for a call, which is a format already; leave one out."
                raise Invalid(text, param="response_format")
            sampling["response_format"] = call.format
        return sampling


@router.post(
    "/chat/completions",
    response_model=ChatCompletion,
    responses=refusals(404, 429, 502) | STREAM,
)
async def create_chat_completion(
    body: ChatBody, request: Request, tenant_id: TenantId, services: FromServices
) -> Response:
    """A model's answer to a conversation. With `stream`, chunks as server-sent events.

    `tools` are written by the model's chat template. A call that `tool_choice` insists on is kept
    to the function's parameters. One that the model makes by itself is found where it is written as
    `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`; in any other notation it is text.
    """
    wire, answer, call = await in_thread(ask, services, tenant_id, body)
    with _in_the_words_of_chat(call):
        if body.stream:
            return await streamed(services, request, tenant_id, wire, answer)
        found, usage = await whole(services, request, tenant_id, wire)
    return json_answer(answer.whole(found, usage))


def ask(
    services: Services, tenant_id: str, body: ChatBody
) -> tuple[Asked, ChatAnswer, Insisted | None]:
    """Render under the model's own contract. Raises what `voice_named` does, and Invalid."""
    voice = voice_named(services, tenant_id, body.model, body.adapters)
    tools = offered(body.tools, body.tool_choice)
    call = insisted(body.tools, body.tool_choice)
    prompt = _rendered(voice, body, tools)
    wire = asked(services, tenant_id, voice, [prompt], body.sampling(call))
    answer = ChatAnswer(
        body.model,
        fingerprint(voice),
        partial(speech_for, call, frozenset(tool["function"]["name"] for tool in tools)),
        top_logprobs=body.top_logprobs or 0,
        with_usage=body.with_usage,
    )
    return wire, answer, call


class Unrendered(RenderError):
    """What a chat template cannot write, and the field of this request that it stands in."""

    def __init__(self, error: RenderError) -> None:
        super().__init__(str(error))
        self.param = "tools" if isinstance(error, ToolsUnwritten) else "messages"


def _rendered(voice: Voice, body: ChatBody, tools: Sequence[Mapping[str, Any]]) -> list[int]:
    turns = turns_of(body.messages)
    try:
        return voice.renderer.prompt_ids(turns, tools)
    except RenderError as error:
        raise Unrendered(error) from error


@contextmanager
def _in_the_words_of_chat(call: Insisted | None) -> Iterator[None]:
    """A refusal of the inference server names the field that this route has it from."""
    try:
        yield
    except GeneratorRefused as error:
        param = error.body.param or ""
        ours = {"prompt": "messages"}.get(param)
        if call is not None and param.startswith("response_format"):
            ours = "tools"
        if ours is None:
            raise
        body = error.body.model_copy(update={"param": ours})
        raise GeneratorRefused(error.status, body) from error
