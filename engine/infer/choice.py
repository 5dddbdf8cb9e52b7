"""One choice of an answer, or a piece of it when it is streamed: OpenAI's completions shapes."""

from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer

from engine.infer.generator import Finish, Output, PromptReused, PromptScored
from engine.infer.prompt import EncodedPrompt
from engine.infer.sampling import Score


@dataclass(frozen=True, slots=True)
class Shape:
    """What the client wants of a choice."""

    echo: bool
    logprobs: bool
    token_ids: bool


@dataclass(slots=True)
class _Piece:
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    scored: list[tuple[int, int, Score | None]] = field(default_factory=list)  # id, offset, score


class Choice:
    """Collects what one sequence sends; `take` hands out what came since it was last called."""

    def __init__(
        self, tokenizer: Tokenizer, index: int, prompt: EncodedPrompt, shape: Shape
    ) -> None:
        self._tokenizer, self._index = tokenizer, index
        self._prompt, self._shape = prompt, shape
        self._piece = _Piece()
        self._taken = False
        self._start = 0  # where the generated text starts in the text that is sent
        self.generated = 0
        self.reused = 0  # tokens of the prompt that were not computed anew
        self.finish: Finish | None = None
        if shape.echo:
            self._piece.text, self._start = prompt.text, len(prompt.text)

    @property
    def has_news(self) -> bool:
        """Whether a streaming client should be sent a piece now."""
        piece = self._piece
        return bool(piece.text or piece.scored or self.finish) or (
            self._shape.token_ids and bool(piece.token_ids)
        )

    def add(self, event: PromptReused | PromptScored | Output) -> None:
        """Take in what the generator sent."""
        if isinstance(event, PromptReused):
            self.reused = event.tokens
            return
        if isinstance(event, PromptScored):
            self._piece.scored += zip(
                self._prompt.ids, self._prompt.offsets, event.scores, strict=True
            )
            return
        self._piece.text += event.text
        self.finish = event.finish
        if event.token_id is None:
            return
        self.generated += 1
        self._piece.token_ids.append(event.token_id)
        if self._shape.logprobs:
            self._piece.scored.append((event.token_id, self._start + event.offset, event.score))

    def take(self) -> dict[str, Any]:
        """The wire form of what came since the last time."""
        piece, self._piece = self._piece, _Piece()
        wire: dict[str, Any] = {
            "index": self._index,
            "text": piece.text,
            "logprobs": self._logprobs(piece) if self._shape.logprobs else None,
            "finish_reason": self.finish.reason if self.finish else None,
            "stop_reason": self.finish.stop_reason if self.finish else None,
        }
        if self._shape.token_ids:
            wire["token_ids"] = piece.token_ids
            if not self._taken:
                wire["prompt_token_ids"] = list(self._prompt.ids)
        self._taken = True
        return wire

    def _logprobs(self, piece: _Piece) -> dict[str, list[Any]]:
        scores = [score for _, _, score in piece.scored]
        return {
            "tokens": [self._token(token) for token, _, _ in piece.scored],
            "token_logprobs": [score.logprob if score else None for score in scores],
            "top_logprobs": [self._top(score) if score else None for score in scores],
            "text_offset": [offset for _, offset, _ in piece.scored],
        }

    def _top(self, score: Score) -> dict[str, float]:
        """By token text, the chosen one first; ids where two tokens have the same text."""
        top = {self._token(score.token_id): score.logprob}
        for token, logprob in score.top:
            if token != score.token_id:
                text = self._token(token)
                top[f"token_id:{token}" if text in top else text] = logprob
        return top

    def _token(self, token_id: int) -> str:
        return self._tokenizer.decode([token_id], skip_special_tokens=False)
