"""The examples that a trainer will find in a dataset, counted without keeping them."""

import math
import random
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from engine.estimate.errors import EstimateImpossible
from engine.examples import (
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
from engine.rows import Row
from engine.spec import ROWS_OF_METHOD, KtoMethod, Method, RewardMethod
from engine.steps import can_hold_out, held_out_places

COUNTED_ROWS = 20_000
COUNTED_BYTES = 32 << 20

Reader = Callable[[Any, Renderer, int], Read[Any]]
_READERS: dict[str, Reader] = {
    "conversation": read_conversation,
    "preference": read_preference,
    "prompt": read_prompt,
    "rating": read_rating,
}


@dataclass
class Counts:
    """Rows that were looked at (every `stride`th), and of each example its length and its loss.

    An example's length is that of its longer sequence; `tokens` are those of all its sequences.
    `keys` are equal for conversations of the same tokens.
    """

    stride: int = 1
    rows: int = 0
    counted: int = 0
    truncated: int = 0
    left_out: int = 0
    masked: int = 0
    lengths: "array[int]" = field(default_factory=lambda: array("Q"))
    tokens: "array[int]" = field(default_factory=lambda: array("Q"))
    trained: "array[int]" = field(default_factory=lambda: array("Q"))
    keys: "array[int]" = field(default_factory=lambda: array("q"))
    labels: set[bool] = field(default_factory=set)

    @property
    def scale(self) -> float:
        """What a figure of the counted rows is to be multiplied with."""
        return self.rows / self.counted if self.counted else 1.0


@dataclass(frozen=True)
class Sides:
    """What is learned from and what is held out: examples, and of the first their tokens."""

    examples: int
    held_out: int
    tokens: int
    trained_tokens: int


def stride_for(rows: int, size_bytes: int) -> int:
    """1 where every row is counted; of larger datasets every so many-th is."""
    return max(1, math.ceil(rows / COUNTED_ROWS), math.ceil(size_bytes / COUNTED_BYTES))


def strides_for(sizes: Sequence[tuple[int, int]]) -> list[int]:
    """The same of several datasets, by rows and bytes: together they are counted like one.

    Where they are too large for that, each has an equal part of what is counted.
    """
    all_rows, all_bytes = (sum(column) for column in zip(*sizes, strict=True))
    parts = len(sizes) if stride_for(all_rows, all_bytes) > 1 else 1
    return [stride_for(rows * parts, size_bytes * parts) for rows, size_bytes in sizes]


def count(rows: Iterable[Row], renderer: Renderer, method: Method, *, stride: int = 1) -> Counts:
    """Render every `stride`th row as the method's trainer does.

    Raises RenderError with the number of a row that the template refuses, and EstimateImpossible
    where the trainer would find nothing to learn from.
    """
    counts, read = Counts(stride), _reader(method)
    for number, row in enumerate(rows, start=1):
        counts.rows = number
        if (number - 1) % stride:
            continue
        try:
            found = read(row, renderer, method.max_length)
        except RenderError as error:
            raise type(error)(f"row {number}: {error}") from None
        counts.counted += 1
        counts.truncated += found.truncated
        counts.left_out += found.left_out is not None
        counts.masked += found.left_out == "empty"
        for example in found.examples:
            _add(counts, example)
    _check(counts, method)
    return counts


def sides(counts: Counts, method: Method, seed: int) -> Sides:
    """The split that the job's seed draws; from a sample, one of the same size."""
    require_two_sides(counts, method)
    found = len(counts.lengths)
    order = list(range(found))
    if isinstance(method, KtoMethod):
        random.Random(seed).shuffle(order)  # as its trainer does before it holds rows out
    drawn = held_out_places(found, method.validation_split, seed)
    train = [place for i, place in enumerate(order) if i not in drawn]
    examples = round(found * counts.scale)
    held_out = round(examples * method.validation_split)
    return Sides(
        examples=examples - held_out,
        held_out=held_out,
        tokens=round(sum(counts.tokens[i] for i in train) * counts.scale),
        trained_tokens=round(sum(counts.trained[i] for i in train) * counts.scale),
    )


def require_two_sides(counts: Counts, method: Method) -> None:
    """Raises EstimateImpossible where nothing would be left to learn from, or held out."""
    found = len(counts.lengths)
    if not can_hold_out(round(found * counts.scale), method.validation_split):
        raise EstimateImpossible(
            "nothing_to_hold_out",
            f"`method.validation_split` of {found} rows leaves no row on one side; change it, or "
            "bring more rows.",
            param="method.validation_split",
        )


def expected_longest(lengths: Iterable[int], of: int) -> float:
    """The mean length of the longest of `of` examples drawn at random: what a batch is padded to.

    From the distribution of a maximum: P(max <= l) = P(length <= l) ** of.
    """
    ordered = sorted(lengths)
    n = len(ordered)
    shares = [(i / n) ** of for i in range(n + 1)]
    later = islice(shares, 1, None)
    gains = (after - before for before, after in zip(shares, later, strict=False))
    return sum(length * gain for length, gain in zip(ordered, gains, strict=True))


def _reader(method: Method) -> Reader:
    if isinstance(method, RewardMethod):
        return lambda row, renderer, length: read_preference(row, renderer, length, whole=True)
    return _READERS[ROWS_OF_METHOD[method.type]]


def _add(counts: Counts, example: Example | Pair | Rated | Asked) -> None:
    match example:
        case Pair():
            sequences = [example.chosen, example.rejected]
        case Rated():
            sequences = [example.answer]
            counts.labels.add(example.label)
        case Example():
            sequences = [example]
            counts.keys.append(hash(tuple(example.input_ids)))
        case Asked():
            sequences = []
    ids = [example.input_ids] if isinstance(example, Asked) else [s.input_ids for s in sequences]
    counts.lengths.append(max(map(len, ids)))
    counts.tokens.append(sum(map(len, ids)))
    counts.trained.append(sum(sequence.trained_tokens for sequence in sequences))


def _check(counts: Counts, method: Method) -> None:
    if not counts.lengths:
        raise EstimateImpossible(
            "nothing_to_train",
            f"No row can be learned from within {method.max_length} tokens; raise "
            "`method.max_length`.",
            param="method.max_length",
        )
    if isinstance(method, KtoMethod) and len(counts.labels) == 1 and counts.stride == 1:
        label = str(next(iter(counts.labels))).lower()
        raise EstimateImpossible(
            "one_label", f"Every row has the label {label}; KTO learns from both.", param="dataset"
        )
