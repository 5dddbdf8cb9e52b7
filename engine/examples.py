"""What one row is to a trainer: examples of token ids with a loss mask, or why it is left out.

Torch-free: the trainers learn from what is found here, and estimates count it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from engine.render import Rendered, Renderer
from engine.rows import Conversation, Preference, Prompt, Rating

IGNORED = -100  # torch's ignore_index: no loss at this position
T = TypeVar("T")

# `empty`: nothing to learn within max_length; `alike`: both answers are one; `long`: a prompt.
Reason = Literal["empty", "alike", "long"]


@dataclass(frozen=True)
class Example:
    """Token ids, and labels of the same length: the id where it is trained, else IGNORED."""

    input_ids: list[int]
    labels: list[int]

    @property
    def trained_tokens(self) -> int:
        return sum(label != IGNORED for label in self.labels)

    @property
    def start(self) -> int:
        """Where the first trained token is; what is before it is the prompt."""
        return next(i for i, label in enumerate(self.labels) if i and label != IGNORED)


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, the better one first; `margin` as in the row."""

    chosen: Example
    rejected: Example
    margin: float = 0.0

    @property
    def trained_tokens(self) -> int:
        return self.chosen.trained_tokens + self.rejected.trained_tokens


@dataclass(frozen=True)
class Rated:
    """An answer that was liked or not."""

    answer: Example
    label: bool

    @property
    def trained_tokens(self) -> int:
        return self.answer.trained_tokens


@dataclass(frozen=True)
class Asked:
    """A prompt and its token ids."""

    row: Prompt
    input_ids: list[int]


@dataclass(frozen=True)
class Read(Generic[T]):
    """What a row came to; without examples, `left_out` says why."""

    examples: tuple[T, ...]
    truncated: bool = False
    left_out: Reason | None = None


def read_conversation(row: Conversation, renderer: Renderer, max_length: int) -> Read[Example]:
    """One example; or one a turn, where the template needs it."""
    rendered = renderer.sequences(row, max_length=max_length)
    found = tuple(example for sequence in rendered if (example := _example(sequence)))
    truncated = any(sequence.truncated for sequence in rendered)
    return Read(found, truncated, None if found else "empty")


def read_preference(
    row: Preference, renderer: Renderer, max_length: int, *, whole: bool = False
) -> Read[Pair]:
    """Two answers, each up to its last trained token; with `whole`, not where one is cut."""
    rendered = renderer.sequences(row, max_length=max_length)
    cut = any(sequence.truncated for sequence in rendered)
    chosen, rejected = map(_answer, rendered)
    if chosen is None or rejected is None or (whole and cut):
        return Read((), left_out="empty")
    if chosen == rejected:
        return Read((), left_out="alike")
    return Read((Pair(chosen, rejected, row.margin),), cut)


def read_rating(row: Rating, renderer: Renderer, max_length: int) -> Read[Rated]:
    """An answer up to its last trained token, with its label."""
    (rendered,) = renderer.sequences(row, max_length=max_length)
    answer = _answer(rendered)
    if answer is None:
        return Read((), rendered.truncated, "empty")
    return Read((Rated(answer, row.label),), rendered.truncated)


def read_prompt(row: Prompt, renderer: Renderer, max_length: int) -> Read[Asked]:
    """A prompt's tokens, up to where the assistant is to speak; too long ones are left out."""
    ids = renderer.prompt_ids(row.prompt, row.tools)
    if len(ids) > max_length:
        return Read((), left_out="long")
    return Read((Asked(row, ids),))


def _example(rendered: Rendered) -> Example | None:
    # The first token is never predicted, so a mask on it alone trains nothing.
    if not any(rendered.loss_mask[1:]):
        return None
    return Example(list(rendered.token_ids), _labels(rendered.token_ids, rendered.loss_mask))


def _answer(rendered: Rendered) -> Example | None:
    """The sequence without what the template writes after the answer."""
    example = _example(rendered)
    if example is None:
        return None
    return Example(example.input_ids[: rendered.end], example.labels[: rendered.end])


def _labels(token_ids: Sequence[int], mask: Sequence[bool]) -> list[int]:
    return [token if m else IGNORED for token, m in zip(token_ids, mask, strict=True)]
