"""What POST /v1/chat/completions answers: whole, and in chunks."""

import time
from collections.abc import Iterable, Iterator
from typing import Any, Literal
from uuid import uuid4

from pydantic import Field

from api.envelope import Wire, absent
from api.errors import GeneratorFailed
from api.v1.tools import Insisted, ToolCall, ToolCallFunction
from engine.completions import Choice, Completion, ServerAnswer, Usage


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


class ChatAnswer:
    """What all parts of one answer say of it, and how its choices are worded."""

    def __init__(
        self,
        model: str,
        fingerprint: str,
        *,
        top_logprobs: int = 0,
        insisted: Insisted | None = None,
        with_usage: bool = False,
    ) -> None:
        self._common: dict[str, Any] = {
            "id": f"chatcmpl-{uuid4().hex[:24]}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }
        self._top, self._insisted, self._with_usage = top_logprobs, insisted, with_usage
        self._held: dict[int, str] = {}  # by choice that has begun: what is not sent yet

    def whole(self, answer: Completion, usage: Usage) -> ChatCompletion:
        choices = tuple(self._choice(choice) for choice in answer.choices)
        return ChatCompletion(**self._common, choices=choices, usage=usage)

    def _choice(self, choice: Choice) -> ChatChoice:
        message, reason = AnswerMessage(content=choice.text), choice.finish_reason
        if self._insisted is not None:
            call = self._insisted.call(choice.text)
            message = AnswerMessage(content=None, tool_calls=(call,))
            reason = self._insisted.reason(reason)
        logprobs = chat_logprobs(choice.logprobs, self._top)
        return ChatChoice(
            index=choice.index, message=message, logprobs=logprobs, finish_reason=reason
        )

    def piece(self, piece: Completion) -> Iterator[ChatCompletionChunk]:
        for choice in piece.choices:
            if choice.index not in self._held:
                self._held[choice.index] = ""
                yield self._chunk(ChunkChoice(index=choice.index, delta=self._beginning()))
            delta = self._delta(choice)
            reason = choice.finish_reason
            logprobs = chat_logprobs(choice.logprobs, self._top)
            if delta != Delta() or logprobs is not None:
                yield self._chunk(ChunkChoice(index=choice.index, delta=delta, logprobs=logprobs))
            if reason is not None:
                reason = self._insisted.reason(reason) if self._insisted else reason
                yield self._chunk(
                    ChunkChoice(index=choice.index, delta=Delta(), finish_reason=reason)
                )

    def end(self, usage: Usage | None) -> Iterable[ChatCompletionChunk]:
        return [self._chunk(usage=usage)] if self._with_usage else []

    def _beginning(self) -> Delta:
        if self._insisted is None:
            return Delta(role="assistant", content="")
        calls = () if self._insisted.several else (self._insisted.begun(),)
        return Delta(role="assistant", tool_calls=calls or None)

    def _delta(self, choice: Choice) -> Delta:
        if self._insisted is None:
            return Delta(content=choice.text or None)
        if not self._insisted.several:
            return Delta(tool_calls=_arguments(choice.text))
        self._held[choice.index] += choice.text  # which function it is shows at the end
        if choice.finish_reason is None:
            return Delta()
        return Delta(tool_calls=(self._insisted.call(self._held[choice.index], index=0),))

    def _chunk(self, *choices: ChunkChoice, usage: Usage | None = None) -> ChatCompletionChunk:
        return ChatCompletionChunk(**self._common, choices=choices, usage=usage)


def _arguments(text: str) -> tuple[ToolCall, ...] | None:
    if not text:
        return None
    return (ToolCall(index=0, function=ToolCallFunction(arguments=text)),)


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
