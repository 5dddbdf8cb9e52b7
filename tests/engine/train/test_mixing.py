"""Mixtures and replay on a real, small model: what is read, held out, reported and resumed."""

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from engine.epochs import Epochs, parts_of
from engine.estimate.forecast import Asked, Worker, forecast_all
from engine.estimate.mixing import Source
from engine.packing import pack
from engine.plan import Portion
from engine.render import load_renderer
from engine.rows import iter_rows
from engine.spec import FullPeft, LoraPeft, Peft, SftMethod
from engine.train.batches import Batches
from engine.train.errors import TrainingFailed
from tests.bases import make_base
from tests.engine.estimate.test_exact import shape_of
from tests.engine.train.runs import Reports, bytes_of, rows_for, train
from tests.engine.train.test_methods import timeless

SMALL: dict[str, Any] = {"per_device_batch_size": 4, "max_length": 64, "learning_rate": 5e-3}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


def told(count: int, what: str = "tell") -> list[dict[str, Any]]:
    """Rows of another task than those of `rows_for`."""
    return [{"prompt": f"{what} {i}", "completion": f"{i} {what} {i}"} for i in range(count)]


def portion(folder: Path, name: str, rows: list[dict[str, Any]], share: float) -> Portion:
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return Portion(dataset_id=name, path=path, format="jsonl", share=share)


def mixture(folder: Path, *shares: float, rows: int = 11, others: int = 6) -> dict[str, Any]:
    """Eleven rows of numbers, and six of something else."""
    first, second = shares
    return {
        "mixture": (
            portion(folder, "ds_a", rows_for("sft", rows), first),
            portion(folder, "ds_b", told(others), second),
        )
    }


CONTRACT: list[tuple[str, dict[str, Any], Peft]] = [
    ("mixed", {"num_train_epochs": 2.0}, LoraPeft(r=4, lora_dropout=0.3)),
    ("mixed-replayed", {"num_train_epochs": 1.5}, FullPeft()),
    (
        "mixed-replayed-packed-kl",
        {"packing": True, "max_length": 40, "num_train_epochs": 3.0, "kl_coef": 0.1},
        LoraPeft(r=4),
    ),
]


@pytest.mark.parametrize(("name", "more", "peft"), CONTRACT, ids=[name for name, *_ in CONTRACT])
def test_a_run_resumed_from_any_checkpoint_is_the_run_that_was_not_stopped(
    base: Path, tmp_path: Path, name: str, more: dict[str, Any], peft: Peft
) -> None:
    method = SftMethod(
        **(SMALL | {"gradient_accumulation_steps": 2, "per_device_batch_size": 2} | more),
        validation_split=0.2,
    )
    plan = mixture(tmp_path, 1.0, 2.0)
    if "replayed" in name:
        plan["replay"] = portion(tmp_path, "ds_c", told(9, "say"), 0.3)
    whole, reports = train(base, tmp_path / "whole", method, peft, **plan)
    last = max(reports.metrics)
    assert last >= 5
    for step in range(1, last):
        resumed, again = train(
            base,
            tmp_path / f"from-{step}",
            method,
            peft,
            resume_from=reports.checkpoints / f"checkpoint-{step}",
            **plan,
        )
        expected = {n: found for n, found in reports.metrics.items() if n > step}
        assert timeless(again.metrics) == timeless(expected)
        assert bytes_of(resumed) == bytes_of(whole)
        assert resumed.metrics == whole.metrics


def run(base: Path, folder: Path, method: SftMethod, **plan: Any) -> Reports:
    return train(base, folder, method, LoraPeft(r=4), **plan)[1]


def test_an_epoch_has_the_rows_of_all_datasets_shared_by_weight(base: Path, tmp_path: Path) -> None:
    """Rows of one token length each tell by the tokens that were read which of them were."""
    long = [{"prompt": f"say {i}", "completion": "it " * 9} for i in range(4)]
    short = [{"prompt": f"say {i}", "completion": "it"} for i in range(4)]
    method = SftMethod(num_train_epochs=1, **SMALL)

    def tokens(first: float, second: float) -> float:
        name = f"{first}-{second}"
        parts = (
            portion(tmp_path, f"long-{name}", long, first),
            portion(tmp_path, f"short-{name}", short, second),
        )
        reports = run(base, tmp_path / name, method, rows=long, mixture=parts)
        assert reports.started is not None
        assert (reports.started.rows, max(reports.metrics)) == (8, 2)
        return reports.metrics[2]["num_tokens"]

    even, longer, shorter = tokens(1.0, 1.0), tokens(3.0, 1.0), tokens(1.0, 3.0)
    assert longer - even == even - shorter > 0
    assert tokens(30.0, 10.0) == longer, "weights are relative"


def test_each_dataset_is_held_out_and_looked_at_by_itself(base: Path, tmp_path: Path) -> None:
    method = SftMethod(max_steps=15, validation_split=0.3, **SMALL)
    reports = run(
        base,
        tmp_path / "run",
        method,
        **mixture(tmp_path, 3.0, 1.0),
        replay=portion(tmp_path, "ds_c", told(10, "number"), 0.5),
    )
    (_, before), (_, after) = reports.evaluations
    names = {"eval_loss", "eval_loss/ds_a", "eval_loss/ds_b", "eval_replay_loss"}
    assert {name for name in before if "loss" in name} == names
    for metrics in (before, after):
        mean = 0.75 * metrics["eval_loss/ds_a"] + 0.25 * metrics["eval_loss/ds_b"]
        assert metrics["eval_loss"] == pytest.approx(mean, abs=1e-6)
    assert all(after[name] < before[name] for name in names), "each of them is learned"


def test_the_loss_of_a_dataset_is_that_of_its_own_held_out_rows(base: Path, tmp_path: Path) -> None:
    method = SftMethod(max_steps=1, validation_split=0.3, **SMALL)
    alone = run(base, tmp_path / "alone", method, rows=told(6))
    mixed = run(base, tmp_path / "mixed", method, **mixture(tmp_path, 1.0, 1.0))
    expected = alone.evaluations[0][1]["eval_loss"]
    assert mixed.evaluations[0][1]["eval_loss/ds_b"] == pytest.approx(expected, abs=1e-6)


def test_rows_that_are_held_out_of_one_dataset_are_learned_from_none(
    base: Path, tmp_path: Path
) -> None:
    """Both datasets have the same ten rows; three are held out of each, the same ones."""
    rows = rows_for("sft", 10)
    parts = (portion(tmp_path, "ds_a", rows, 1.0), portion(tmp_path, "ds_b", rows[::-1], 1.0))
    method = SftMethod(max_steps=1, validation_split=0.3, **SMALL)
    reports = run(base, tmp_path / "run", method, rows=rows, mixture=parts)
    held_out = {i for i in range(10) if i in _drawn(10)} | {9 - i for i in _drawn(10)}
    assert reports.started is not None
    assert reports.started.rows == 2 * (10 - len(held_out))
    left_out = 14 - reports.started.rows
    assert any(f"{left_out} rows were left out: rows with the same" in w for w in reports.warnings)


def _drawn(rows: int) -> list[int]:
    import random

    return random.Random(3).sample(range(rows), round(rows * 0.3))


def test_what_is_replayed_is_forgotten_less(base: Path, tmp_path: Path) -> None:
    """Other answers to the same prompts: with all rows of what was learned before, or with one."""
    sharp = SMALL | {
        "max_steps": 30,
        "learning_rate": 1e-2,
        "warmup_ratio": 0.0,
        "lr_scheduler_type": "constant",
    }
    earlier = [{"prompt": f"say {i}", "completion": "it is it is it is"} for i in range(20)]
    later = [{"prompt": f"say {i}", "completion": "number number"} for i in range(20)]
    first, _ = train(base, tmp_path / "first", SftMethod(**sharp), LoraPeft(r=4), rows=earlier)
    forgotten = {}
    for ratio in (0.01, 1.0):
        replay = portion(tmp_path, "ds_a", earlier, ratio)
        method = SftMethod(validation_split=0.2, **sharp)
        folder = tmp_path / f"{ratio}"
        reports = run(base, folder, method, rows=later, replay=replay, init_from=first.path)
        (_, before), (_, after) = reports.evaluations
        assert after["eval_loss"] < before["eval_loss"] - 0.5, "the new task is learned"
        forgotten[ratio] = after["eval_replay_loss"] - before["eval_replay_loss"]
    assert forgotten[0.01] > 0.3
    assert forgotten[1.0] < forgotten[0.01] / 2


def test_epochs_end_where_they_are_looked_at(base: Path, tmp_path: Path) -> None:
    method = SftMethod(
        num_train_epochs=2, validation_split=0.2, early_stopping_patience=5, packing=True, **SMALL
    )
    reports = run(base, tmp_path / "run", method, **mixture(tmp_path, 1.0, 1.0))
    last = max(reports.metrics)
    assert [step for step, _ in reports.evaluations] == [0, last // 2, last]


def test_a_dataset_with_nothing_to_learn_is_named(base: Path, tmp_path: Path) -> None:
    plan = mixture(tmp_path, 1.0, 1.0)
    blank = [{"prompt": "say " * 80, "completion": "it"}]
    plan["mixture"] = (plan["mixture"][0], portion(tmp_path, "ds_b", blank, 1.0))
    with pytest.raises(TrainingFailed, match="Dataset ds_b: No row can be learned from") as failed:
        run(base, tmp_path / "run", SftMethod(max_steps=1, **SMALL), **plan)
    assert failed.value.code == "nothing_to_train"


def test_a_dataset_that_is_too_small_to_hold_out_is_named(base: Path, tmp_path: Path) -> None:
    plan = mixture(tmp_path, 1.0, 1.0, others=2)
    method = SftMethod(max_steps=1, validation_split=0.2, **SMALL)
    with pytest.raises(TrainingFailed, match=r"Dataset ds_b: `method\.validation_split`"):
        run(base, tmp_path / "run", method, **plan)


@pytest.mark.parametrize("packing", [False, True], ids=["loose", "packed"])
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_a_run_finds_what_was_estimated_of_it(
    base: Path, tmp_path: Path, packing: bool, share: float
) -> None:
    method = SftMethod(num_train_epochs=2.5, packing=packing, validation_split=share, **SMALL)
    numbers, others = rows_for("sft", 30), [*told(7), *told(3)]
    parts = (portion(tmp_path, "ds_a", numbers, 1.0), portion(tmp_path, "ds_b", others, 60.0))
    replay = portion(tmp_path, "ds_c", told(9, "say"), 0.3)
    sources = [
        Source(
            iter_rows(part.path, "jsonl", "conversation"),
            name=part.dataset_id,
            share=part.share,
            replayed=part is replay,
        )
        for part in (*parts, replay)
    ]
    peft = LoraPeft(r=4)
    said = forecast_all(
        Asked(method, peft, seed=3),
        shape_of(base),
        sources,
        load_renderer(base),
        Worker("cpu", 1),
    )

    reports = run(base, tmp_path / "run", method, rows=numbers, mixture=parts, replay=replay)

    started = reports.started
    assert started is not None
    assert (said.trained_rows, said.trained_tokens) == (started.rows, started.trained_tokens)
    assert said.steps == started.total_steps == max(reports.metrics)
    assert (said.packed_rows is not None) is packing
    assert any("ds_b is read" in warning for warning in said.warnings) is (share > 0)
    assert [w for w in said.warnings if "ds_b" in w] == [
        w for w in reports.warnings if "is read" in w
    ]


def test_steps_of_a_long_packed_run_follow_from_its_first_epoch(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one request would pack a thousand epochs of every dataset of its mixture."""
    method = SftMethod(num_train_epochs=20, packing=True, **SMALL)
    parts = [
        portion(tmp_path, "ds_a", told(30), 1.0),
        portion(tmp_path, "ds_b", told(9, "it"), 2.0),
    ]

    def said() -> tuple[int, str]:
        rows = [iter_rows(part.path, "jsonl", "conversation") for part in parts]
        found = forecast_all(
            Asked(method, LoraPeft(r=4), seed=3),
            shape_of(base),
            [Source(r, 1, p.dataset_id, p.share) for r, p in zip(rows, parts, strict=True)],
            load_renderer(base),
            Worker("cpu", 1),
        )
        return found.steps, found.basis["steps"]

    exact, of_all = said()
    monkeypatch.setattr("engine.estimate.mixing.PACKED_EXAMPLES", 779)
    about, of_one = said()
    assert about == pytest.approx(exact, rel=0.2)
    assert "first epoch" not in of_all
    assert of_one.endswith("in the first epoch, as if every epoch had as many")
    packed = count_calls(monkeypatch)
    said()
    assert packed == [39], "one epoch of 39 examples"


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many examples each call of `pack` was given, from now on."""
    seen: list[int] = []

    def counted(lengths: Sequence[int], room: int) -> list[list[int]]:
        seen.append(len(lengths))
        return pack(lengths, room)

    monkeypatch.setattr("engine.epochs.pack", counted)
    return seen


def test_a_run_of_ten_million_steps_begins_at_once() -> None:
    """Its rows are drawn epoch by epoch, and take no memory before."""
    method = SftMethod(max_steps=10_000_000, per_device_batch_size=4, gradient_accumulation_steps=2)
    parts = parts_of(["ds_a", "ds_b"], [[5] * 6, [7] * 3], [1.0, 2.0], replays=False)
    batches = Batches(Epochs(parts, 3), method)
    assert (len(batches), batches.steps_an_epoch) == (20_000_000, 2)
    found = list(islice(batches, 8))
    assert [len(batch) for batch in found] == [4, 4, 1, 1] * 2
    assert found[3] == [[]], "the filling of an epoch's last step"
    assert found[:4] != found[4:]


def test_of_large_datasets_a_sample_says_about_the_same(base: Path, tmp_path: Path) -> None:
    method = SftMethod(num_train_epochs=3, packing=True, validation_split=0.1, **SMALL)
    parts = [
        portion(tmp_path, "ds_a", told(300), 1.0),
        portion(tmp_path, "ds_b", told(90, "it"), 2.0),
    ]

    def said(*strides: int) -> list[int]:
        sources = [
            Source(
                iter_rows(part.path, "jsonl", "conversation"), stride, part.dataset_id, part.share
            )
            for part, stride in zip(parts, strides, strict=True)
        ]
        found = forecast_all(
            Asked(method, LoraPeft(r=4), seed=3),
            shape_of(base),
            sources,
            load_renderer(base),
            Worker("cpu", 1),
        )
        assert found.packed_rows is not None
        return [found.rows, found.trained_rows, found.tokens, found.packed_rows, found.steps]

    exact = said(1, 1)
    assert exact[0] == 390
    assert said(3, 1) == pytest.approx(exact, rel=0.05)
    assert said(5, 3) == pytest.approx(exact, rel=0.05)
