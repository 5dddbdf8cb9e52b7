"""Rows that are held out: which they are, when they are looked at, and when that ends a run."""

from pathlib import Path

import pytest

from engine.spec import DpoMethod, KtoMethod, LoraPeft, RewardMethod, SftMethod
from engine.train.errors import TrainingFailed
from tests.bases import make_base
from tests.engine.train.runs import rows_for, train

SMALL = {"per_device_batch_size": 2, "max_length": 64, "warmup_ratio": 0.0}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


def test_they_are_looked_at_before_and_after(base: Path, tmp_path: Path) -> None:
    method = SftMethod(max_steps=6, learning_rate=1e-2, validation_split=0.2, **SMALL)
    finished, reports = train(base, tmp_path / "run", method, LoraPeft(r=4))
    assert [step for step, _ in reports.evaluations] == [0, 6]
    before, after = (metrics["eval_loss"] for _, metrics in reports.evaluations)
    assert after < before - 0.5
    assert finished.metrics["eval_loss"] == after


def test_they_are_also_looked_at_as_often_as_asked_but_once_at_the_end(
    base: Path, tmp_path: Path
) -> None:
    method = DpoMethod(max_steps=4, validation_split=0.2, eval_steps=2, **SMALL)
    _, reports = train(base, tmp_path / "run", method, LoraPeft(r=4))
    assert [step for step, _ in reports.evaluations] == [0, 2, 4]


def test_a_run_that_no_longer_gets_better_on_them_ends(base: Path, tmp_path: Path) -> None:
    method = SftMethod(
        num_train_epochs=100,
        learning_rate=0.3,  # far too high: the held-out loss rises soon
        validation_split=0.3,
        eval_steps=1,
        early_stopping_patience=3,
        **SMALL,
    )
    _, reports = train(base, tmp_path / "run", method, LoraPeft(r=4))
    losses = [metrics["eval_loss"] for _, metrics in reports.evaluations]
    assert len(reports.metrics) < 60
    assert min(losses[-3:]) >= min(losses[:-3])


def test_what_is_held_out_is_not_learned_from(base: Path, tmp_path: Path) -> None:
    """Rows that contradict the others: learned from, their loss would fall."""
    rows = rows_for("reward", 20)
    method = RewardMethod(max_steps=15, learning_rate=5e-3, validation_split=0.2, **SMALL)
    _, reports = train(base, tmp_path / "run", method, LoraPeft(r=4), rows=rows)
    assert reports.evaluations[-1][1]["eval_accuracy"] >= 0.9  # the same rule holds for them
    drawn = set(_drawn(20, method.validation_split))
    swapped = [
        row | {"chosen": row["rejected"], "rejected": row["chosen"]} if i in drawn else row
        for i, row in enumerate(rows)
    ]
    _, reports = train(base, tmp_path / "swapped", method, LoraPeft(r=4), rows=swapped)
    assert reports.evaluations[-1][1]["eval_accuracy"] <= 0.1


def _drawn(rows: int, share: float) -> list[int]:
    import random

    return random.Random(3).sample(range(rows), round(rows * share))


@pytest.mark.parametrize(("rows", "share"), [(2, 0.1), (1, 0.5)])
def test_too_few_rows_to_hold_some_out_are_refused(
    base: Path, tmp_path: Path, rows: int, share: float
) -> None:
    method = SftMethod(max_steps=1, validation_split=share, **SMALL)
    with pytest.raises(TrainingFailed, match=r"`method\.validation_split`") as failed:
        train(base, tmp_path / "run", method, LoraPeft(r=4), rows=rows_for("sft", rows))
    assert failed.value.code == "nothing_to_hold_out"


def test_kto_wants_answers_of_both_kinds(base: Path, tmp_path: Path) -> None:
    rows = [row for row in rows_for("kto", 10) if row["label"]]
    with pytest.raises(TrainingFailed, match="Every row has the label true"):
        train(base, tmp_path / "run", KtoMethod(max_steps=1, max_length=64), LoraPeft(), rows=rows)


def test_pairs_with_nothing_to_prefer_are_left_out_and_told(base: Path, tmp_path: Path) -> None:
    rows = rows_for("dpo", 6)
    rows[0]["rejected"] = rows[0]["chosen"]
    _, reports = train(
        base, tmp_path / "run", DpoMethod(max_steps=1, **SMALL), LoraPeft(r=4), rows=rows
    )
    assert any("chosen and rejected are the same" in warning for warning in reports.warnings)
