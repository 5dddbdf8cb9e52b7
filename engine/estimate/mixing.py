"""What an epoch of SFT learns from, where datasets are mixed, replayed or packed."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from engine.epochs import Epochs, learned_places, parts_of
from engine.estimate.counting import Counts, Sides, require_two_sides
from engine.estimate.errors import EstimateImpossible
from engine.render import RenderError
from engine.rows import Row
from engine.spec import Method
from engine.steps import answers_a_step, held_out_places

# Examples of a run that are packed to count its steps; of a longer one the first epoch's say it.
PACKED_EXAMPLES = 1_000_000


@dataclass(frozen=True)
class Source:
    """A dataset's rows, of which every `stride`th is looked at; `name` and `share` as of a Part.

    share: its weight in a mixture; of what is replayed, its ratio to the others.
    """

    rows: Iterable[Row]
    stride: int = 1
    name: str = ""
    share: float = 1.0
    replayed: bool = False


@dataclass(frozen=True)
class Learned:
    """An epoch: its examples, the steps of the run, and the rows that batches are made of.

    `row_lengths` are in tokens; `packed_rows` is None where every example is a row. `counted`:
    every epoch's steps are; else the first epoch stands for all.
    """

    sides: Sides
    steps: int
    row_lengths: Sequence[int]
    packed_rows: int | None
    warnings: tuple[str, ...]
    counted: bool = True


def learned(
    counted: Sequence[Counts], sources: Sequence[Source], method: Method, seed: int
) -> Learned:
    """Exact where every row was counted, else scaled up. Raises EstimateImpossible."""
    for counts, source in zip(counted, sources, strict=True):
        with naming(source):
            require_two_sides(counts, method)
    drawn = [held_out_places(len(c.lengths), method.validation_split, seed) for c in counted]
    places = learned_places([counts.keys for counts in counted], drawn)
    scale = max(counts.scale for counts in counted)
    parts = parts_of(
        [source.name for source in sources],
        [[c.lengths[i] for i in kept] for c, kept in zip(counted, places, strict=True)],
        [source.share for source in sources],
        replays=any(source.replayed for source in sources),
        scales=[counts.scale for counts in counted],
    )
    packing = getattr(method, "packing", False)
    epochs = Epochs(parts, seed, room=method.max_length if packing else None)
    line = [(c, i) for c, kept in zip(counted, places, strict=True) for i in kept]
    first = [line[place] for place in epochs.drawn(0)]
    rows = epochs.rows(0)
    few = epochs.alike or epochs.examples * method.num_train_epochs <= PACKED_EXAMPLES
    all_counted = scale == 1 and (few or not packing)
    row_lengths = [sum(line[p][0].lengths[line[p][1]] for p in row) for row in rows]
    return Learned(
        Sides(
            examples=round(epochs.examples * scale),
            held_out=sum(
                round(round(len(c.lengths) * c.scale) * method.validation_split) for c in counted
            ),
            tokens=round(sum(c.tokens[i] for c, i in first) * scale),
            trained_tokens=round(sum(c.trained[i] for c, i in first) * scale),
        ),
        epochs.steps(method) if all_counted else _about(method, len(rows) * scale),
        row_lengths,
        round(len(rows) * scale) if packing else None,
        tuple(warning for part in parts if (warning := part.warning())),
        all_counted,
    )


@contextmanager
def naming(source: Source) -> Iterator[None]:
    """Errors say which dataset they are about, where there are several."""
    try:
        yield
    except RenderError as error:
        if not source.name:
            raise
        raise type(error)(f"dataset {source.name}: {error}") from None
    except EstimateImpossible as error:
        if not source.name:
            raise
        text = f"Dataset {source.name}: {error}"
        raise EstimateImpossible(error.code, text, param=error.param) from error


def _about(method: Method, rows: float) -> int:
    if method.max_steps is not None:
        return method.max_steps
    return math.ceil(math.ceil(rows / answers_a_step(method)) * method.num_train_epochs)
