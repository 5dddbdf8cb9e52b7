"""What the inference server answers, as far as it is read: OpenAI's completions. Torch-free."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

PATH = "/v1/completions"
# Said in every request, for a server that takes what is left open from its base's own settings.
NEUTRAL = {
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


class ServerAnswer(BaseModel):
    """Another server's words: what we do not know is left out."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class PromptTokensDetails(ServerAnswer):
    """How many of a prompt's tokens had been computed for an earlier request."""

    cached_tokens: int | None = None


class Usage(ServerAnswer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = Field(
        None, exclude_if=lambda details: details is None
    )


class Choice(ServerAnswer):
    index: int = 0
    text: str
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = None


class Completion(ServerAnswer):
    """A whole answer, or one piece of a streamed one."""

    choices: tuple[Choice, ...] = ()
    usage: Usage | None = None


class Refusal(ServerAnswer):
    message: str
    param: str | None = None
    code: str | int | None = None


class Refused(ServerAnswer):
    """The error envelope."""

    error: Refusal


class Model(ServerAnswer):
    """One of GET /v1/models: a base where it has no `parent`."""

    id: str
    parent: str | None = None


class Models(ServerAnswer):
    data: tuple[Model, ...]
