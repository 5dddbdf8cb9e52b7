"""The datasets of an SFT job, read and held out each by itself, and the rows of the whole run."""

from array import array
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
from datasets import Dataset

from engine.epochs import Epochs, Part, learned_places, parts_of
from engine.plan import TrainPlan, Warned
from engine.render import Renderer
from engine.spec import SftMethod
from engine.train.batches import Batches
from engine.train.errors import TrainingFailed
from engine.train.examples import IGNORED, Example, conversations
from engine.train.link import Link
from engine.train.sft_trainer import REPLAY
from engine.train.start import read, read_rows
from engine.train.trainer import Split, draw_held_out, split_rows


@dataclass(frozen=True)
class Group:
    """The examples of one dataset. share: its weight; of what is replayed, its ratio."""

    name: str
    examples: list[Example]
    share: float


@dataclass(frozen=True)
class Groups:
    """What is learned from, and what is replayed beside it."""

    main: list[Group]
    replay: Group | None

    @property
    def all(self) -> list[Group]:
        return self.main + ([self.replay] if self.replay else [])


def read_groups(plan: TrainPlan, link: Link) -> tuple[Renderer, Groups]:
    """Every dataset of the plan. Raises TrainingFailed, naming one that has nothing to learn."""
    renderer, first = read(plan, link, conversations)
    main = [Group("", first.examples, 1.0)]
    if plan.mixture:
        main = [Group(plan.mixture[0].dataset_id, first.examples, plan.mixture[0].share)]
    portions = [*plan.mixture[1:], *([plan.replay] if plan.replay else [])]
    rest = []
    for portion in portions:
        try:
            data = read_rows(
                plan,
                link,
                renderer,
                conversations,
                (portion.path, portion.format),
                named=f"Dataset {portion.dataset_id}: ",
            )
        except TrainingFailed as error:
            text = f"Dataset {portion.dataset_id}: {error}"
            raise TrainingFailed(error.code, text) from error
        rest.append(Group(portion.dataset_id, data.examples, portion.share))
    replay = rest.pop() if plan.replay else None
    return renderer, Groups(main + rest, replay)


def columns(examples: list[Example]) -> dict[str, list[list[int]]]:
    return {
        "input_ids": [example.input_ids for example in examples],
        "labels": [example.labels for example in examples],
    }


@dataclass(frozen=True)
class Mixed:
    """What is learned from, and what is looked at: by dataset, where there are several.

    batches: those of the whole run, in order. Without them the trainer goes over `split.train`
    itself, in an order of its own for each epoch.
    """

    split: Split
    held_out: Any
    batches: Batches | None = None


def mixed(plan: TrainPlan, groups: Groups, link: Link) -> Mixed:
    """Hold out each dataset's share, then draw what is learned. Raises TrainingFailed."""
    method = plan.method
    assert isinstance(method, SftMethod)
    if not (plan.mixture or plan.replay or method.packing):
        split = split_rows(groups.main[0].examples, columns, plan)
        return Mixed(split, split.held_out)
    drawn = [_held_out(group, plan) for group in groups.all]
    keys = [[hash(tuple(e.input_ids)) for e in group.examples] for group in groups.all]
    places = learned_places(keys, drawn)
    _tell_of_leaks(link, sum(len(g.examples) for g in groups.all), drawn, places)
    learned = [
        [group.examples[i] for i in kept] for group, kept in zip(groups.all, places, strict=True)
    ]
    for group, kept in zip(groups.all, learned, strict=True):
        _require_rows(group, kept)
    epochs = Epochs(_parts(groups, learned), plan.seed, room=_room(method))
    for part in epochs.parts:
        if warning := part.warning():
            link.send(Warned(message=warning))
    return _rows(plan, method, groups, learned, drawn, epochs)


def _rows(
    plan: TrainPlan,
    method: SftMethod,
    groups: Groups,
    learned: list[list[Example]],
    drawn: list[set[int]],
    epochs: Epochs,
) -> Mixed:
    line = [example for examples in learned for example in examples]
    train, batches = _written_out(line, epochs, method)
    held_out = {
        REPLAY if group is groups.replay else group.name: Dataset.from_dict(
            columns([group.examples[i] for i in sorted(places)])
        )
        for group, places in zip(groups.all, drawn, strict=True)
        if places
    }
    looked_at: Any = held_out if len(held_out) > 1 else next(iter(held_out.values()), None)
    split = Split(
        train,
        next(iter(held_out.values()), None),
        sum(line[place].trained_tokens for place in epochs.drawn(0)),
        passes=batches.steps / batches.steps_an_epoch,
        rows=epochs.examples,
    )
    return Mixed(split, looked_at, batches)


def _written_out(line: list[Example], epochs: Epochs, method: SftMethod) -> tuple[Dataset, Batches]:
    """The rows of the whole run, each made of its examples when it is read, and its batches.

    The last row has nothing to learn: an epoch's last step is filled with it, so that every step
    has `gradient_accumulation_steps` batches.
    """
    places, ends, sizes = array("q"), array("q", [0]), array("q")
    batch = method.per_device_batch_size
    for step in epochs.run(method):
        for row in step:
            places.extend(row)
            ends.append(len(places))
        for first in range(0, batch * method.gradient_accumulation_steps, batch):
            sizes.append(len(step[first : first + batch]))
    ends.append(len(places))
    lists = pa.LargeListArray.from_arrays(pa.array(ends), pa.array(places))
    train = Dataset(pa.table({"places": lists}))
    shortest = min(line, key=lambda example: len(example.input_ids))
    blank = Example(shortest.input_ids, [IGNORED] * len(shortest.labels))
    return (
        train.with_transform(partial(_joined, line, blank, method.packing)),
        Batches(sizes, batch, epochs.steps(method), epochs.steps_of(0, method)),
    )


def _joined(
    line: list[Example], blank: Example, packing: bool, rows: dict[str, list[list[int]]]
) -> dict[str, list[Any]]:
    """Rows of token ids and labels, where they are packed with the lengths of their examples."""
    found = [[line[place] for place in row] or [blank] for row in rows["places"]]
    made = {
        "input_ids": [[token for e in row for token in e.input_ids] for row in found],
        "labels": [[label for e in row for label in e.labels] for row in found],
    }
    lengths = {"seq_lengths": [[len(e.input_ids) for e in row] for row in found]}
    return made | (lengths if packing else {})


def _parts(groups: Groups, learned: list[list[Example]]) -> list[Part]:
    return parts_of(
        [group.name for group in groups.all],
        [[len(example.input_ids) for example in examples] for examples in learned],
        [group.share for group in groups.all],
        replays=groups.replay is not None,
    )


def _held_out(group: Group, plan: TrainPlan) -> set[int]:
    try:
        return draw_held_out(len(group.examples), plan)
    except TrainingFailed as error:
        if not group.name:
            raise
        raise TrainingFailed(error.code, f"Dataset {group.name}: {error}") from error


def _require_rows(group: Group, kept: list[Example]) -> None:
    if not kept:
        raise TrainingFailed(
            "nothing_to_train",
            f"Every row of dataset {group.name} that is not held out is the same as one that is; "
            "lower `method.validation_split`, or bring other rows.",
        )


def _tell_of_leaks(link: Link, all: int, drawn: list[set[int]], places: list[list[int]]) -> None:
    left_out = all - sum(map(len, drawn)) - sum(map(len, places))
    if left_out:
        text = f"{left_out} rows were left out: rows with the same tokens are held out."
        link.send(Warned(message=text))


def _room(method: SftMethod) -> int | None:
    return method.max_length if method.packing else None
