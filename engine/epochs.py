"""What each epoch of a run takes of its datasets, in which order and in which rows.

Torch-free: the trainer reads the rows that are found here, and estimates count them.
"""

import math
import random
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, islice
from itertools import count as count_from

from engine.packing import pack
from engine.spec import Training
from engine.steps import answers_a_step

# Up to four passes, repeated rows teach about as much as new ones (Muennighoff et al. 2023,
# https://arxiv.org/abs/2305.16264).
MANY_TIMES = 4


@dataclass(frozen=True)
class Part:
    """A dataset's examples that are learned from: their lengths, and how many an epoch takes.

    An epoch takes the next `taken` of an order that `name` and the seed draw. When the order is
    used up it begins anew, drawn again: no example comes again before all others came as often.
    """

    name: str
    lengths: Sequence[int]
    taken: int
    times: float  # that each example is read in an epoch; of a sample, in the whole it stands for

    def warning(self) -> str | None:
        """What a client should know of a dataset that is repeated often within an epoch."""
        if self.times <= MANY_TIMES:
            return None
        return (
            f"Dataset {self.name} is read {self.times:.1f} times an epoch, where new rows would "
            "teach more. Lower its weight or ratio, or bring more rows."
        )


def learned_places(
    keys: Sequence[Sequence[int]], drawn: Sequence[AbstractSet[int]]
) -> list[list[int]]:
    """Of each dataset the places that are learned from, when those in `drawn` are held out.

    `keys` stand for the examples' tokens: what is held out of one dataset is learned from none.
    """
    held_out = {its[place] for its, places in zip(keys, drawn, strict=True) for place in places}
    return [[place for place, key in enumerate(its) if key not in held_out] for its in keys]


def taken_by_weight(sizes: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Of each dataset the examples an epoch takes: as many in all as there are, shared by weight.

    Rounded by largest remainder; a share that rounds to nothing is one example.
    """
    whole, total = sum(sizes), math.fsum(weights)
    shares = [whole * weight / total for weight in weights]
    taken = [math.floor(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: taken[i] - shares[i])
    for i in by_remainder[: whole - sum(taken)]:
        taken[i] += 1
    return [max(1, count) for count in taken]


def replayed(main: int, ratio: float) -> int:
    """Examples that are replayed an epoch, beside so many others: their `ratio`, one at least."""
    return max(1, round(main * ratio))


def parts_of(
    names: Sequence[str],
    lengths: Sequence[Sequence[int]],
    shares: Sequence[float],
    *,
    replays: bool,
    scales: Sequence[float] | None = None,
) -> list[Part]:
    """The parts of an epoch: `shares` are weights, the last one a ratio where it `replays`.

    scales: how many examples each of these stands for, where they are a sample; an epoch is then
    smaller by the largest of them. A single dataset is taken whole.
    """
    sizes = [len(found) for found in lengths]
    scales = scales or [1.0] * len(sizes)
    scaled = [round(size * scale) for size, scale in zip(sizes, scales, strict=True)]
    main = len(sizes) - replays
    taken = taken_by_weight(scaled[:main], shares[:main])
    if replays:
        taken.append(replayed(sum(scaled[:main]), shares[-1]))
    smaller = max(scales)
    return [
        Part(name, found, max(1, round(count / smaller)), count / size)
        for name, found, count, size in zip(names, lengths, taken, scaled, strict=True)
    ]


class Epochs:
    """The rows of every epoch. A row is the places of its examples, the parts standing in one line.

    room: the tokens that a packed row may have; None: every example is a row.
    """

    def __init__(self, parts: Sequence[Part], seed: int, *, room: int | None = None) -> None:
        self.parts, self._seed, self._room = tuple(parts), seed, room
        self._lengths = [length for part in parts for length in part.lengths]
        self._counts: dict[int, int] = {}
        self._starts = (0, *accumulate(len(part.lengths) for part in parts))

    @property
    def examples(self) -> int:
        """How many examples an epoch has, each as often as it is taken."""
        return sum(part.taken for part in self.parts)

    def drawn(self, epoch: int) -> list[int]:
        """The places of the examples of an epoch, those of each part in its order."""
        found = []
        for part, start in zip(self.parts, self._starts, strict=False):
            order = _order(part, self._seed, epoch * part.taken)
            found += [start + place for place in islice(order, part.taken)]
        return found

    def rows(self, epoch: int) -> list[list[int]]:
        """The rows of an epoch, in an order that the seed draws for it."""
        drawn = self.drawn(epoch)
        rows = [[place] for place in drawn]
        if self._room is not None:
            packed = pack([self._lengths[place] for place in drawn], self._room)
            rows = [[drawn[i] for i in row] for row in packed]
        random.Random(f"{self._seed} rows {epoch}").shuffle(rows)
        return rows

    def count(self, epoch: int) -> int:
        """How many rows an epoch has."""
        if self._room is None:
            return self.examples
        which = 0 if self.alike else epoch
        if which not in self._counts:
            self._counts[which] = len(self.rows(which))
        return self._counts[which]

    def run(self, method: Training) -> Iterator[list[list[int]]]:
        """The rows of each step of a whole run. The last step of an epoch may have fewer."""
        return islice(self._steps(answers_a_step(method)), self.steps(method))

    def steps(self, method: Training) -> int:
        """Steps of the optimizer in a whole run; of an epoch that is cut, its share, rounded up."""
        if method.max_steps is not None:
            return method.max_steps
        whole = math.floor(method.num_train_epochs)
        share = method.num_train_epochs - whole
        steps = sum(self.steps_of(epoch, method) for epoch in range(whole))
        return steps + (math.ceil(self.steps_of(whole, method) * share) if share else 0)

    def steps_of(self, epoch: int, method: Training) -> int:
        return math.ceil(self.count(epoch) / answers_a_step(method))

    def _steps(self, size: int) -> Iterator[list[list[int]]]:
        for epoch in count_from(0):
            rows = self.rows(epoch)
            yield from (rows[first : first + size] for first in range(0, len(rows), size))

    @cached_property
    def alike(self) -> bool:
        """Whether every epoch has the same lengths, and so as many packed rows."""
        return all(part.taken % len(part.lengths) == 0 for part in self.parts)


def _order(part: Part, seed: int, first: int) -> Iterator[int]:
    """A part's order without end, from this place on."""
    turn, skipped = divmod(first, len(part.lengths))
    while True:
        order = list(range(len(part.lengths)))
        random.Random(f"{seed} {part.name} {turn}").shuffle(order)
        yield from order[skipped:]
        turn, skipped = turn + 1, 0
