"""Rows as token ids with a loss mask, by the base's render contract."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from engine.render import Rendered, Renderer
from engine.rows import Conversation, Preference, Prompt, Rating, Row
from engine.train.errors import TrainingFailed

IGNORED = -100  # torch's ignore_index: no loss at this position
T = TypeVar("T")


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
    """Two answers to one prompt, the better one first."""

    chosen: Example
    rejected: Example

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
class Tokenized(Generic[T]):
    """What the rows came to. `left_out` says why, in the words of the client's rows."""

    examples: list[T]
    truncated: int
    left_out: tuple[str, ...] = ()

    def warnings(self, max_length: int) -> list[str]:
        """What a client should know about these rows before it trusts the result."""
        cut = f"{self.truncated} rows were cut at max_length={max_length} tokens."
        return [cut] * bool(self.truncated) + list(self.left_out)


def conversations(rows: Iterable[Row], renderer: Renderer, max_length: int) -> Tokenized[Example]:
    """Each conversation as an example; as one a turn where the template needs it.

    Raises TrainingFailed when no row has a trained token.
    """
    examples: list[Example] = []
    truncated = empty = 0
    for row in _only(rows, Conversation):
        rendered = renderer.sequences(row, max_length=max_length)
        truncated += any(sequence.truncated for sequence in rendered)
        found = [example for sequence in rendered if (example := _example(sequence))]
        empty += not found
        examples += found
    return _checked(Tokenized(examples, truncated, _empty(empty, max_length)), max_length)


def preferences(
    rows: Iterable[Row], renderer: Renderer, max_length: int, *, whole: bool = False
) -> Tokenized[Pair]:
    """Each preference as two answers, each up to its last trained token.

    Left out are pairs that are alike within `max_length`, for which there is nothing to prefer;
    with `whole` also those of which an answer is cut, because its end is what is scored.
    """
    pairs: list[Pair] = []
    truncated = empty = alike = 0
    for row in _only(rows, Preference):
        rendered = renderer.sequences(row, max_length=max_length)
        cut = any(sequence.truncated for sequence in rendered)
        chosen, rejected = map(_answer, rendered)
        if chosen is None or rejected is None or (whole and cut):
            empty += 1
        elif chosen == rejected:
            alike += 1
        else:
            truncated += cut
            pairs.append(Pair(chosen, rejected))
    same = f"{alike} rows were left out: chosen and rejected are the same within max_length."
    left_out = (*_empty(empty, max_length), *[same] * bool(alike))
    return _checked(Tokenized(pairs, truncated, left_out), max_length)


def ratings(rows: Iterable[Row], renderer: Renderer, max_length: int) -> Tokenized[Rated]:
    """Each rating as an answer up to its last trained token, with its label."""
    rated: list[Rated] = []
    truncated = empty = 0
    for row in _only(rows, Rating):
        (rendered,) = renderer.sequences(row, max_length=max_length)
        truncated += rendered.truncated
        answer = _answer(rendered)
        empty += answer is None
        rated += [Rated(answer, row.label)] if answer else []
    return _checked(Tokenized(rated, truncated, _empty(empty, max_length)), max_length)


def prompts(rows: Iterable[Row], renderer: Renderer, max_length: int) -> Tokenized[Asked]:
    """Each prompt with its tokens, up to where the assistant is to speak; too long ones are out."""
    found: list[Asked] = []
    long = 0
    for row in _only(rows, Prompt):
        ids = renderer.prompt_ids(row.prompt)
        long += len(ids) > max_length
        found += [Asked(row, ids)] if len(ids) <= max_length else []
    text = f"{long} rows were left out: their prompt is longer than max_length={max_length} tokens."
    return _checked(Tokenized(found, 0, (text,) * bool(long)), max_length)


R = TypeVar("R", Conversation, Preference, Prompt, Rating)


def _only(rows: Iterable[Row], kind: type[R]) -> Iterator[R]:
    for row in rows:
        if not isinstance(row, kind):
            name = kind.__name__.lower()
            raise TrainingFailed("wrong_row_type", f"This method learns from {name} rows.")
        yield row


def _checked(data: Tokenized[T], max_length: int) -> Tokenized[T]:
    if not data.examples:
        raise TrainingFailed(
            "nothing_to_train",
            f"No row can be learned from within {max_length} tokens; raise `method.max_length`.",
        )
    return data


def _empty(rows: int, max_length: int) -> tuple[str, ...]:
    text = (
        f"{rows} rows were left out: nothing of the assistant's text is within "
        f"max_length={max_length}, so they have no loss."
    )
    return (text,) * bool(rows)


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
