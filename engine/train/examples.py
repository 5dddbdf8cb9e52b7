"""A dataset's rows as examples, with what a client should know of those that were left out."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from engine.examples import (
    IGNORED,
    Asked,
    Example,
    Pair,
    Rated,
    Read,
    read_conversation,
    read_preference,
    read_prompt,
    read_rating,
)
from engine.render import Renderer, RenderError
from engine.rows import Conversation, Preference, Prompt, Rating, Row
from engine.train.errors import TrainingFailed

__all__ = [
    "IGNORED",
    "Asked",
    "Example",
    "Pair",
    "Rated",
    "Tokenized",
    "conversations",
    "preferences",
    "prompts",
    "ratings",
]

T = TypeVar("T")


@dataclass(frozen=True)
class Tokenized(Generic[T]):
    """What the rows came to. `left_out` says why, in the words of the client's rows.

    `validation`: examples of other rows, to look at alone.
    """

    examples: list[T]
    truncated: int
    left_out: tuple[str, ...] = ()
    validation: tuple[T, ...] = ()

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
    for read in _read(
        rows, Conversation, partial(read_conversation, renderer=renderer, max_length=max_length)
    ):
        truncated += read.truncated
        empty += read.left_out is not None
        examples += read.examples
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
    for read in _read(
        rows,
        Preference,
        partial(read_preference, renderer=renderer, max_length=max_length, whole=whole),
    ):
        truncated += read.truncated
        empty += read.left_out == "empty"
        alike += read.left_out == "alike"
        pairs += read.examples
    same = f"{alike} rows were left out: chosen and rejected are the same within max_length."
    left_out = (*_empty(empty, max_length), *[same] * bool(alike))
    return _checked(Tokenized(pairs, truncated, left_out), max_length)


def ratings(rows: Iterable[Row], renderer: Renderer, max_length: int) -> Tokenized[Rated]:
    """Each rating as an answer up to its last trained token, with its label."""
    rated: list[Rated] = []
    truncated = empty = 0
    for read in _read(rows, Rating, partial(read_rating, renderer=renderer, max_length=max_length)):
        truncated += read.truncated
        empty += read.left_out is not None
        rated += read.examples
    return _checked(Tokenized(rated, truncated, _empty(empty, max_length)), max_length)


def prompts(rows: Iterable[Row], renderer: Renderer, max_length: int) -> Tokenized[Asked]:
    """Each prompt with its tokens, up to where the assistant is to speak; too long ones are out."""
    found: list[Asked] = []
    long = 0
    for read in _read(rows, Prompt, partial(read_prompt, renderer=renderer, max_length=max_length)):
        long += read.left_out is not None
        found += read.examples
    text = f"{long} rows were left out: their prompt is longer than max_length={max_length} tokens."
    return _checked(Tokenized(found, 0, (text,) * bool(long)), max_length)


R = TypeVar("R", Conversation, Preference, Prompt, Rating)


def _read(rows: Iterable[Row], kind: type[R], read: Callable[[R], Read[T]]) -> Iterator[Read[T]]:
    """What each row comes to. Raises TrainingFailed, and RenderError with the row's number."""
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, kind):
            name = kind.__name__.lower()
            raise TrainingFailed("wrong_row_type", f"This method learns from {name} rows.")
        try:
            yield read(row)
        except RenderError as error:
            raise type(error)(f"Row {number}: {error}") from None


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
