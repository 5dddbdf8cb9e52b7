"""The shapes of a chat's answers, whole and in chunks, and of their log-probs."""

from typing import Any, Literal

from pydantic import Field

from api.envelope import Wire, absent
from api.errors import GeneratorFailed
from api.v1.tools import ToolCall
from engine.completions import ServerAnswer, Usage


class TopLogprob(Wire):
    """`bytes` is null where a token is a part of a character."""

    token: str
    logprob: float | None
    bytes: tuple[int, ...] | None


class TokenLogprob(TopLogprob):
    top_logprobs: tuple[TopLogprob, ...]


class ChatLogprobs(Wire):
    content: tuple[TokenLogprob, ...]
    refusal: None = None


class AnswerMessage(Wire):
    """The assistant's turn."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: tuple[ToolCall, ...] | None = Field(None, exclude_if=absent)


class ChatChoice(Wire):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None


class ChatCompletion(Wire):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: tuple[ChatChoice, ...]
    usage: Usage
    system_fingerprint: str


class Delta(Wire):
    """What a chunk adds to the message."""

    role: Literal["assistant"] | None = Field(None, exclude_if=absent)
    content: str | None = Field(None, exclude_if=absent)
    tool_calls: tuple[ToolCall, ...] | None = Field(None, exclude_if=absent)


class ChunkChoice(Wire):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class ChatCompletionChunk(Wire):
    """A piece of a streamed answer; with `include_usage` the last one has the usage alone."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: tuple[ChunkChoice, ...]
    usage: Usage | None = Field(None, exclude_if=absent)
    system_fingerprint: str


class _Scored(ServerAnswer):
    """The log-probs of /v1/completions. A token without one has null."""

    tokens: tuple[str, ...]
    token_logprobs: tuple[float | None, ...]
    top_logprobs: tuple[dict[str, float | None] | None, ...]


def chat_logprobs(found: dict[str, Any] | None, top: int) -> ChatLogprobs | None:
    """Of each token its log-prob, and the `top` likeliest. Raises GeneratorFailed."""
    if found is None:
        return None
    try:
        scored = _Scored.model_validate(found)
        rows = zip(scored.tokens, scored.token_logprobs, scored.top_logprobs, strict=True)
        return ChatLogprobs(content=tuple(_token(*row, top) for row in rows))
    except ValueError:
        raise GeneratorFailed("The inference server's log-probs are not one a token.") from None


def _token(
    token: str, logprob: float | None, likeliest: dict[str, float | None] | None, top: int
) -> TokenLogprob:
    known = [(text, value) for text, value in (likeliest or {}).items() if value is not None]
    best = sorted(known, key=lambda each: -each[1])[:top]
    return TokenLogprob(
        token=token,
        logprob=logprob,
        bytes=_bytes(token),
        top_logprobs=tuple(
            TopLogprob(token=text, logprob=value, bytes=_bytes(text)) for text, value in best
        ),
    )


def _bytes(token: str) -> tuple[int, ...] | None:
    return None if "\ufffd" in token else tuple(token.encode())
