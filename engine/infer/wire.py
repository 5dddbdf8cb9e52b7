"""The body of POST /v1/completions, as OpenAI and vLLM have it."""

from typing import Annotated, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    Json,
    JsonValue,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from engine.infer.errors import RequestInvalid
from engine.infer.sampling import Sampling
from engine.response_format import ResponseFormat

M = TypeVar("M", bound=BaseModel)
TokenId = Annotated[int, Field(ge=0)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
StopString = Annotated[str, Field(min_length=1, max_length=1024)]
_ANY_OBJECT: dict[str, JsonValue] = {"type": "object"}
_NESTED = ("response_format", "structured_outputs")  # their fields are named to the end
_PROMPT_FORMS = "must be a string, a list of token ids, or a list of either"


class StreamOptions(BaseModel):
    """Options of `stream`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    include_usage: bool = False


class WeightedAdapter(BaseModel):
    """One of several adapters whose deltas are added, and how much of it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: str
    weight: float = Field(1.0, ge=-100, le=100, allow_inf_nan=False)


class StructuredOutputs(BaseModel):
    """vLLM's way to say what an answer is kept to: a JSON schema, as JSON or as a text of it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    json_: dict[str, JsonValue] | Json[dict[str, JsonValue]] | None = Field(None, alias="json")
    json_object: Literal[True] | None = None

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        if (self.json_ is None) == (self.json_object is None):
            raise PydanticCustomError("structured_outputs", "give one of `json` and `json_object`")
        return self


class CompletionRequest(BaseModel):
    """What a client may ask. Fields that the server does not know are refused, not ignored.

    `adapters`, of Luthier's own, adds the weighted deltas of several to the base, which `model`
    then names. `user` is whose request it is: those of several take turns.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    model: str
    prompt: str | list[TokenId] | list[str] | list[list[TokenId]]
    max_tokens: int | None = Field(16, ge=0)
    temperature: float = Field(1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(-1, ge=-1)
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0, le=10)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: Annotated[dict[TokenId, Bias], Field(max_length=1024)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: StopString | Annotated[list[StopString], Field(max_length=32)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=256)] | None = None
    ignore_eos: bool = False
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool = False
    n: int = Field(1, ge=1, le=64)
    stream: bool = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool = False
    adapters: Annotated[list[WeightedAdapter], Field(min_length=1, max_length=8)] | None = None
    user: str | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream to be true")
        if self.response_format is not None and self.structured_outputs is not None:
            raise ValueError("give one of response_format and structured_outputs")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens 0 only scores the prompt; set echo too, or generate more")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)  # type: ignore[arg-type]  # several, of either form

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def kept_to(self) -> tuple[dict[str, JsonValue], str] | None:
        """The schema of the answer, and the field that it came in."""
        asked, format = self.structured_outputs, self.response_format
        if asked is not None:
            if asked.json_ is not None:
                return asked.json_, "structured_outputs.json"
            return dict(_ANY_OBJECT), "structured_outputs.json_object"
        if format is None or format.type == "text":
            return None
        if format.json_schema is not None:
            return format.json_schema.schema_, "response_format.json_schema.schema"
        return dict(_ANY_OBJECT), "response_format"

    @property
    def sampling(self) -> Sampling:
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            seed=self.seed,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=tuple((self.logit_bias or {}).items()),
        )

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


def parse_request(kind: type[M], body: bytes) -> M:
    """Raises RequestInvalid: 400 when it is not JSON, 422 when it is not JSON of this kind."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _explain(error) from error


def _explain(error: ValidationError) -> RequestInvalid:
    problems: dict[str, str] = {}
    for each in error.errors(include_url=False, include_context=False, include_input=False):
        if each["type"] == "json_invalid" and not each["loc"]:
            return RequestInvalid(
                f"The body is not JSON: {each['msg']}.", param=None, code="malformed_json"
            )
        field = _field_of(each["loc"])
        text = (
            "is not a field of this request" if each["type"] == "extra_forbidden" else each["msg"]
        )
        problems.setdefault(field, _PROMPT_FORMS if field == "prompt" else text)
    shown = "; ".join(f"{field}: {text}" for field, text in list(problems.items())[:20])
    unknown = all(each["type"] == "extra_forbidden" for each in error.errors(include_url=False))
    return RequestInvalid(
        f"{shown}.",
        param=None if next(iter(problems)) == "body" else next(iter(problems)),
        code="unknown_field" if unknown else "invalid_value",
        status=422,
    )


def _field_of(location: tuple[int | str, ...]) -> str:
    if not location:
        return "body"
    if location[0] not in _NESTED:
        return str(location[0])
    return ".".join(str(part) for part in location if str(part).isidentifier())
