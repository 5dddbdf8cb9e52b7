"""The datasets of an SFT job, read and held out each by itself, and the rows they are read in."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from datasets import Dataset

from engine.epochs import Epochs, Part, learned_places, parts_of
from engine.plan import TrainPlan, Warned
from engine.render import Renderer
from engine.spec import SftMethod
from engine.train import spread
from engine.train.batches import Batches
from engine.train.errors import TrainingFailed
from engine.train.examples import IGNORED, Example, conversations
from engine.train.link import Link
from engine.train.sft_trainer import REPLAY
from engine.train.start import read, read_rows
from engine.train.trainer import Split, draw_held_out, shared, split_rows


@dataclass(frozen=True)
class Group:
    """The examples of one dataset. share: its weight; of what is replayed, its ratio."""

    name: str
    examples: list[Example]
    share: float


@dataclass(frozen=True)
class Groups:
    """What is learned from, what is replayed beside it, and what is only looked at."""

    main: list[Group]
    replay: Group | None
    validation: tuple[Example, ...] = ()

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
    return renderer, Groups(main + rest, replay, first.validation)


def columns(examples: list[Example]) -> dict[str, list[list[int]]]:
    return {
        "input_ids": [example.input_ids for example in examples],
        "labels": [example.labels for example in examples],
    }


@dataclass(frozen=True)
class Mixed:
    """What is learned from, and what is looked at: by dataset, where there are several.

    batches: those of the whole run, in order, of `rows`. Without them the trainer goes over
    `split.train` itself, in an order of its own for each epoch.
    """

    split: Split
    held_out: Any
    rows: "Rows | None" = None
    batches: Batches | None = None


@dataclass(frozen=True)
class Rows:
    """Token ids and labels by the places of a row's examples; packed, also the examples' lengths.

    A row of no examples has nothing to learn.
    """

    line: Sequence[Example]
    packing: bool

    def __len__(self) -> int:
        return len(self.line)

    def __getitem__(self, places: Sequence[int]) -> dict[str, list[int]]:
        found = [self.line[place] for place in places] or [self._blank]
        made = {
            "input_ids": [token for example in found for token in example.input_ids],
            "labels": [label for example in found for label in example.labels],
        }
        lengths = {"seq_lengths": [len(example.input_ids) for example in found]}
        return made | (lengths if self.packing else {})

    @cached_property
    def _blank(self) -> Example:
        shortest = min(self.line, key=lambda example: len(example.input_ids))
        return Example(shortest.input_ids, [IGNORED] * len(shortest.labels))


def mixed(plan: TrainPlan, groups: Groups, link: Link) -> Mixed:
    """Hold out each dataset's share, then draw what is learned. Raises TrainingFailed."""
    method = plan.method
    assert isinstance(method, SftMethod)
    if not (plan.mixture or plan.replay or method.packing):
        split = split_rows(groups.main[0].examples, columns, plan, groups.validation)
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
    batches = Batches(epochs, shared(method), spread.rank(), spread.world())
    held_out = {
        REPLAY if group is groups.replay else group.name: Dataset.from_dict(
            columns([group.examples[i] for i in sorted(places)])
        )
        for group, places in zip(groups.all, drawn, strict=True)
        if places
    }
    looked_at: Any = held_out if len(held_out) > 1 else next(iter(held_out.values()), None)
    split = Split(
        Dataset.from_dict(columns(line)),
        next(iter(held_out.values()), None),
        sum(line[place].trained_tokens for place in epochs.drawn(0)),
        passes=batches.steps / batches.steps_an_epoch,
        rows=epochs.examples,
    )
    return Mixed(split, looked_at, Rows(line, method.packing), batches)


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
