"""A dataset of its own to look at: nothing is learned from it, and all of the other one is."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.plan import Portion
from engine.spec import (
    DpoMethod,
    GrpoMethod,
    KtoMethod,
    LoraPeft,
    Method,
    OrpoMethod,
    PpoMethod,
    RewardMethod,
    SftMethod,
)
from engine.train.errors import TrainingFailed
from tests.bases import make_base
from tests.engine.train.runs import bytes_of, rows_for, train

SMALL: dict[str, Any] = {"per_device_batch_size": 2, "max_length": 64, "warmup_ratio": 0.0}
GRADED: dict[str, Any] = SMALL | {
    "max_completion_length": 4,
    "grader": {"type": "length", "name": "long", "unit": "characters", "minimum": 1, "maximum": 9},
}
METHODS: list[Method] = [
    SftMethod(max_steps=2, **SMALL),
    RewardMethod(max_steps=2, **SMALL),
    DpoMethod(max_steps=2, **SMALL),
    OrpoMethod(max_steps=2, **SMALL),
    KtoMethod(max_steps=2, **SMALL),
    GrpoMethod(max_steps=2, num_generations=2, **GRADED),
    PpoMethod(max_steps=2, **GRADED),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


def portion(folder: Path, rows: list[dict[str, Any]]) -> Portion:
    path = folder / "validation.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return Portion(dataset_id="ds_v", path=path, format="jsonl", share=1.0)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.type)
def test_it_is_looked_at_before_and_after_and_changes_nothing(
    base: Path, tmp_path: Path, method: Method
) -> None:
    looked_at = portion(tmp_path, rows_for(method.type, 5))
    plain, _ = train(base, tmp_path / "plain", method, LoraPeft(r=4))
    watched, reports = train(
        base, tmp_path / "watched", method, LoraPeft(r=4), validation=looked_at
    )
    assert [step for step, _ in reports.evaluations] == [0, 2]
    assert reports.started is not None
    assert reports.started.rows == 11, "all rows of the dataset are learned from"
    assert bytes_of(watched) == bytes_of(plain)


def test_it_is_looked_at_as_often_as_asked(base: Path, tmp_path: Path) -> None:
    looked_at = portion(tmp_path, rows_for("sft", 4))
    method = SftMethod(max_steps=4, eval_steps=2, **SMALL)
    _, reports = train(base, tmp_path / "run", method, LoraPeft(r=4), validation=looked_at)
    assert [step for step, _ in reports.evaluations] == [0, 2, 4]


def test_what_it_says_is_not_learned(base: Path, tmp_path: Path) -> None:
    rows = rows_for("reward", 8)
    swapped = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    method = RewardMethod(max_steps=15, learning_rate=5e-3, **SMALL)
    looked_at = portion(tmp_path, swapped)
    _, reports = train(base, tmp_path / "run", method, LoraPeft(r=4), validation=looked_at)
    assert reports.evaluations[-1][1]["eval_accuracy"] <= 0.1


def test_one_with_nothing_to_look_at_is_named(base: Path, tmp_path: Path) -> None:
    pair = rows_for("dpo", 1)[0]
    looked_at = portion(tmp_path, [pair | {"rejected": pair["chosen"]}])
    method = DpoMethod(max_steps=1, **SMALL)
    with pytest.raises(TrainingFailed, match="Validation dataset ds_v: No row") as failed:
        train(base, tmp_path / "run", method, LoraPeft(r=4), validation=looked_at)
    assert failed.value.code == "nothing_to_train"
