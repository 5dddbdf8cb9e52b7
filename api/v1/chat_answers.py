"""What POST /v1/chat/completions answers: whole, and in chunks."""

from collections.abc import Callable, Iterable, Iterator

from api.v1.chat_shapes import (
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChunkChoice,
    Delta,
    chat_logprobs,
)
from api.v1.speech import Speech
from api.v1.voices import heading
from engine.completions import Choice, Completion, Usage


class ChatAnswer:
    """What all parts of one answer say of it; `speak` makes the wording of one choice."""

    def __init__(
        self,
        model: str,
        fingerprint: str,
        speak: Callable[[], Speech],
        *,
        top_logprobs: int = 0,
        with_usage: bool = False,
    ) -> None:
        self._common = heading("chatcmpl", model, fingerprint)
        self._speak, self._top, self._with_usage = speak, top_logprobs, with_usage
        self._begun: dict[int, Speech] = {}

    def whole(self, answer: Completion, usage: Usage) -> ChatCompletion:
        choices = tuple(self._choice(choice) for choice in answer.choices)
        return ChatCompletion(**self._common, choices=choices, usage=usage)

    def _choice(self, choice: Choice) -> ChatChoice:
        speech = self._speak()
        message = speech.whole(choice.text)
        return ChatChoice(
            index=choice.index,
            message=message,
            logprobs=chat_logprobs(choice.logprobs, self._top),
            finish_reason=speech.reason(choice.finish_reason),
        )

    def piece(self, piece: Completion) -> Iterator[ChatCompletionChunk]:
        for choice in piece.choices:
            for each in self._pieces(choice):
                yield self._chunk(each)

    def end(self, usage: Usage | None) -> Iterable[ChatCompletionChunk]:
        return [self._chunk(usage=usage)] if self._with_usage else []

    def _pieces(self, choice: Choice) -> Iterator[ChunkChoice]:
        """The role first, then what was said, then why it ended."""
        index, reason = choice.index, choice.finish_reason
        if index not in self._begun:
            self._begun[index] = self._speak()
            yield ChunkChoice(index=index, delta=self._begun[index].begun())
        speech = self._begun[index]
        delta = speech.piece(choice.text, is_last=reason is not None)
        logprobs = chat_logprobs(choice.logprobs, self._top)
        if delta != Delta() or logprobs is not None:
            yield ChunkChoice(index=index, delta=delta, logprobs=logprobs)
        if reason is not None:
            yield ChunkChoice(index=index, delta=Delta(), finish_reason=speech.reason(reason))

    def _chunk(self, *choices: ChunkChoice, usage: Usage | None = None) -> ChatCompletionChunk:
        return ChatCompletionChunk(**self._common, choices=choices, usage=usage)
