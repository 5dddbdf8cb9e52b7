"""What OpenAI's two routes that generate have in common, and how it is said to the server."""

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from api.answering import MAX_TOKENS, as_passed_on
from api.envelope import Body
from api.generate import Stop
from api.speaking import WeightedAdapter
from engine.response_format import ResponseFormat

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenKey = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
PASSED_ON = {
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "logit_bias", "seed", "stop", "n", "stop_token_ids", "ignore_eos",
}  # fmt: skip


def refused(reason: str, *but: Any) -> BeforeValidator:
    """A field of OpenAI's that would change the answer and is not there: null, or one of `but`."""

    def check(value: Any) -> Any:
        if value is not None and value not in but:
            raise PydanticCustomError("not_supported", "{reason}", {"reason": reason})
        return value

    return BeforeValidator(check)


Unheeded = Annotated[Any, Field(description="taken, and of no effect here")]


class StreamOptions(Body):
    """`include_usage`: a last chunk with the tokens. There is no obfuscation."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class SamplingBody(Body):
    """Who answers, and how its tokens are chosen. null is the default everywhere.

    Beyond OpenAI's fields: those of vLLM's that the engine has, and `adapters`, of Luthier's own.
    """

    model: str = Field(max_length=256, description="a base's name, or an adapter's id")
    adapters: tuple[WeightedAdapter, ...] | None = Field(
        None, min_length=1, max_length=8, description="added up, on the base that `model` names"
    )
    temperature: float | None = Field(None, ge=0, le=2, description="0: the likeliest token")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=1_048_576, description="-1 and 0: off")
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: Annotated[dict[TokenKey, Bias], Field(max_length=1024)] | None = Field(
        None, description="what is added to logits, by token id"
    )
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    n: int | None = Field(None, ge=1, le=64)
    stop: Stop | None = None
    stop_token_ids: Annotated[tuple[TokenId, ...], Field(max_length=128)] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    user: Unheeded = None

    @model_validator(mode="after")
    def _streams_if_it_says_how(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("`stream_options` goes with `stream`: true; leave it out")
        return self

    @property
    def with_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def passed_on(self) -> dict[str, Any]:
        """The fields that the inference server takes under the same names."""
        given = self.model_dump(mode="json", include=PASSED_ON, exclude_none=True)
        if given.get("top_k") == 0:
            given["top_k"] = -1
        return given | as_passed_on(self.response_format)
