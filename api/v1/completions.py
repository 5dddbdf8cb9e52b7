"""POST /v1/completions: OpenAI's older shape, with prompts as texts or token ids."""

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Request, Response
from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from api.answering import MAX_TOKENS, STREAM, Asked, asked, streamed, whole
from api.auth import TenantId
from api.bodies import StrictRoute
from api.calls import in_thread
from api.envelope import Wire, absent, json_answer, refusals
from api.services import FromServices, Services
from api.v1.sampling import SamplingBody, TokenId, refused
from api.v1.voices import fingerprint, heading, voice_named
from engine.completions import Choice, Completion, Usage
from engine.render import Renderer

router = APIRouter(prefix="/v1", tags=["openai"], route_class=StrictRoute)

MAX_PROMPTS = 256
DEFAULT_TOKENS = 16  # OpenAI's
SAY: JsonDict = {"model": "luthier-tiny", "prompt": "Once upon a time", "max_tokens": 16}
TokenIds = Annotated[tuple[TokenId, ...], Field(min_length=1)]
Texts = Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_PROMPTS)]
ListsOfIds = Annotated[tuple[TokenIds, ...], Field(min_length=1, max_length=MAX_PROMPTS)]


def _of_one_form(given: Any) -> Any:
    """Said once, and not for each of the forms that it could have."""
    if given is None or isinstance(given, str) or (given and _are_ids(given)):
        return given
    if isinstance(given, list):
        if not 0 < len(given) <= MAX_PROMPTS or [] in given:
            text = f"This must have 1 to {MAX_PROMPTS} prompts, none of them without a token"
            raise PydanticCustomError("prompt_count", text)
        if all(isinstance(each, str) for each in given) or all(map(_are_ids, given)):
            return given
    text = "This must be a text, a list of token ids, or a list of either"
    raise PydanticCustomError("prompt_form", text)


def _are_ids(given: Any) -> bool:
    return isinstance(given, list) and all(type(i) is int and 0 <= i < 2**31 for i in given)


Prompts = Annotated[str | TokenIds | Texts | ListsOfIds | None, BeforeValidator(_of_one_form)]


class CompletionBody(SamplingBody):
    """OpenAI's fields. A prompt of token ids is continued as it is; null is an empty text.

    `echo` puts the prompt before the answer, and with `logprobs` its tokens' log-probs too; then
    `max_tokens` may be 0.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [SAY]})

    prompt: Prompts
    max_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS, description="default: 16")
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = None
    best_of: int | None = Field(None, ge=1, le=64, description="no other than `n`")
    suffix: Annotated[None, refused("the models here write on at the end alone; leave it out")] = (
        None
    )

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.best_of not in (None, self.n or 1):
            raise ValueError("`best_of` above `n` is not done here; ask for `n` and choose")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("`max_tokens` 0 goes with `echo`; ask for one token at least")
        return self

    @property
    def prompts(self) -> tuple[str | TokenIds, ...]:
        if self.prompt is None:
            return ("",)
        if isinstance(self.prompt, str) or not self.prompt or isinstance(self.prompt[0], int):
            return (self.prompt,)  # type: ignore[return-value]  # one, of either form
        return self.prompt

    def sampling(self) -> dict[str, Any]:
        """For the inference server."""
        sampling = self.passed_on()
        sampling["max_tokens"] = DEFAULT_TOKENS if self.max_tokens is None else self.max_tokens
        if self.logprobs is not None:
            sampling["logprobs"] = self.logprobs
        if self.echo:
            sampling["echo"] = True
        return sampling


class CompletionChoice(Wire):
    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: str | None


class TextCompletion(Wire):
    """A whole answer, or a piece of a streamed one; its last has the usage alone, if asked for."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: tuple[CompletionChoice, ...]
    usage: Usage | None = Field(None, exclude_if=absent)
    system_fingerprint: str


class TextAnswer:
    """What all parts of one answer say of it, and how its choices are worded."""

    def __init__(
        self, model: str, fingerprint: str, leads: list[str], *, with_usage: bool = False
    ) -> None:
        self._common = heading("cmpl", model, fingerprint)
        self._leads, self._with_usage = leads, with_usage
        self._begun: set[int] = set()

    def whole(self, answer: Completion, usage: Usage) -> TextCompletion:
        choices = tuple(self._choice(choice) for choice in answer.choices)
        return TextCompletion(**self._common, choices=choices, usage=usage)

    def piece(self, piece: Completion) -> Iterator[TextCompletion]:
        if piece.choices:
            choices = tuple(self._choice(choice) for choice in piece.choices)
            yield TextCompletion(**self._common, choices=choices)

    def end(self, usage: Usage | None) -> Iterable[TextCompletion]:
        if self._with_usage:
            yield TextCompletion(**self._common, choices=(), usage=usage)

    def _choice(self, choice: Choice) -> CompletionChoice:
        """Echoed without the begin-of-text token that was put before the client's text."""
        text, logprobs = choice.text, choice.logprobs
        lead = self._leads[choice.index] if choice.index < len(self._leads) else ""
        if lead and choice.index not in self._begun:
            self._begun.add(choice.index)
            text = text.removeprefix(lead)
        if lead and logprobs is not None:
            offsets = [max(0, at - len(lead)) for at in logprobs.get("text_offset", ())]
            logprobs = logprobs | {"text_offset": offsets}
        return CompletionChoice(
            index=choice.index, text=text, logprobs=logprobs, finish_reason=choice.finish_reason
        )


@router.post(
    "/completions",
    response_model=TextCompletion,
    responses=refusals(404, 429, 502) | STREAM,
)
async def create_completion(
    body: CompletionBody, request: Request, tenant_id: TenantId, services: FromServices
) -> Response:
    """Prompts, continued. With `stream`, chunks as server-sent events, ended by `data: [DONE]`."""
    wire, answer = await in_thread(ask, services, tenant_id, body)
    if body.stream:
        return await streamed(services, request, tenant_id, wire, answer)
    found, usage = await whole(services, request, tenant_id, wire)
    return json_answer(answer.whole(found, usage))


def ask(services: Services, tenant_id: str, body: CompletionBody) -> tuple[Asked, TextAnswer]:
    """Texts are encoded as POST /generate does it. Raises what `voice_named` does."""
    voice = voice_named(services, tenant_id, body.model, body.adapters)
    prompts = [_encoded(voice.renderer, prompt) for prompt in body.prompts]
    leads = [lead for _, lead in prompts for _ in range(body.n or 1)] if body.echo else []
    wire = asked(services, tenant_id, voice, [ids for ids, _ in prompts], body.sampling())
    return wire, TextAnswer(body.model, fingerprint(voice), leads, with_usage=body.with_usage)


def _encoded(renderer: Renderer, prompt: str | TokenIds) -> tuple[list[int], str]:
    """The tokens, and the text of the begin-of-text token among them that is not the client's."""
    if not isinstance(prompt, str):
        return list(prompt), ""
    bos = renderer.contract.bos_token or ""
    ids = renderer.prompt_ids(prompt)
    is_ours = ids[:1] == [renderer.tokenizer.token_to_id(bos)] and not prompt.startswith(bos)
    return ids, bos if is_ours else ""
