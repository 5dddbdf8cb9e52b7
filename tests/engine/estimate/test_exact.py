"""What is said before a run is what its trainer then finds: rows, tokens, steps, parameters."""

import json
from pathlib import Path
from typing import Any

import pytest

from adapters.tensors import base_shapes
from engine.estimate.base import BaseShape, base_shape
from engine.estimate.forecast import Asked, Worker, forecast
from engine.estimate.model import Estimate
from engine.render import load_renderer
from engine.rows import iter_rows
from engine.spec import (
    ROWS_OF_METHOD,
    DpoMethod,
    FullPeft,
    GrpoMethod,
    KtoMethod,
    LoraPeft,
    Method,
    OrpoMethod,
    Peft,
    PpoMethod,
    PrefixTuningPeft,
    PromptTuningPeft,
    RewardMethod,
    SftMethod,
)
from tests.bases import make_base
from tests.engine.train.runs import rows_for, train

ANYTHING: Any = {"type": "length", "name": "any", "input": "{{ sample.output_text }}", "maximum": 9}
SHORT: dict[str, Any] = {"max_length": 64, "per_device_batch_size": 2}
SAMPLED: dict[str, Any] = {"max_completion_length": 4, "grader": ANYTHING, "max_length": 64}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


def shape_of(base: Path, *, weights: bool = True) -> BaseShape:
    config = json.loads((base / "config.json").read_text())
    return base_shape(config, base_shapes(base) if weights else None)


def estimated(
    base: Path, folder: Path, rows: list[dict[str, Any]], method: Method, peft: Peft, **asked: Any
) -> Estimate:
    path = folder / "estimated.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return forecast(
        Asked(method, peft, seed=3, **asked),
        shape_of(base),
        iter_rows(path, "jsonl", ROWS_OF_METHOD[method.type]),
        load_renderer(base),
        Worker("cpu", 1),
    )


RUNS: list[tuple[Method, Peft]] = [
    (SftMethod(num_train_epochs=1.5, gradient_accumulation_steps=2, **SHORT), LoraPeft(r=4)),
    (SftMethod(validation_split=0.2, num_train_epochs=1, **SHORT), LoraPeft(r=3, use_dora=True)),
    (SftMethod(max_steps=2, **SHORT), LoraPeft(r=2, target_modules=("q_proj", "mlp.down_proj"))),
    (SftMethod(max_steps=1, **SHORT), FullPeft()),
    (SftMethod(max_steps=1, **SHORT), PromptTuningPeft(num_virtual_tokens=5)),
    (SftMethod(max_steps=1, **SHORT), PrefixTuningPeft(num_virtual_tokens=7)),
    (
        SftMethod(max_steps=1, **SHORT),
        PrefixTuningPeft(num_virtual_tokens=7, prefix_projection=True, encoder_hidden_size=9),
    ),
    (RewardMethod(num_train_epochs=1, **SHORT), LoraPeft(r=4)),
    (RewardMethod(max_steps=1, **SHORT), FullPeft()),
    (DpoMethod(num_train_epochs=1, validation_split=0.2, **SHORT), LoraPeft(r=4)),
    (OrpoMethod(num_train_epochs=1, **SHORT), LoraPeft(r=4)),
    (KtoMethod(num_train_epochs=1, validation_split=0.3, **SHORT), LoraPeft(r=4)),
    (PpoMethod(per_device_batch_size=4, num_ppo_epochs=1, **SAMPLED), LoraPeft(r=4)),
    (
        GrpoMethod(per_device_batch_size=4, num_generations=2, num_iterations=2, **SAMPLED),
        LoraPeft(r=4),
    ),
]


@pytest.mark.parametrize(
    ("method", "peft"), RUNS, ids=[f"{i}-{m.type}-{p.type}" for i, (m, p) in enumerate(RUNS)]
)
def test_a_run_finds_what_was_estimated(
    base: Path, tmp_path: Path, method: Method, peft: Peft
) -> None:
    rows = rows_for(method.type, 11)
    said = estimated(base, tmp_path, rows, method, peft)

    finished, reports = train(base, tmp_path / "run", method, peft, rows=rows)

    started = reports.started
    assert started is not None
    assert (said.trained_rows, said.trained_tokens) == (started.rows, started.trained_tokens)
    assert said.trainable_parameters == started.trainable_parameters
    assert said.steps == started.total_steps == finished.metrics["steps"] == max(reports.metrics)


def test_ppo_with_a_reward_model_counts_its_value_function(base: Path, tmp_path: Path) -> None:
    scored = LoraPeft(r=2, target_modules=("q_proj", "v_proj"))
    learned = RewardMethod(max_steps=1, **SHORT)
    reward, _ = train(base, tmp_path / "rm", learned, scored)
    method = PpoMethod(
        reward_model="ad_1", max_steps=1, per_device_batch_size=2, max_completion_length=4
    )
    rows = rows_for("ppo", 4)

    said = estimated(base, tmp_path, rows, method, LoraPeft(r=4), reward_peft=scored)
    _, reports = train(
        base, tmp_path / "run", method, LoraPeft(r=4), rows=rows, reward_from=reward.path
    )

    assert reports.started is not None
    assert said.trainable_parameters == reports.started.trainable_parameters
    assert {"reward", "value"} <= said.memory.keys()


def test_rows_without_loss_and_cut_rows_are_counted_as_the_trainer_does(
    base: Path, tmp_path: Path
) -> None:
    long = {"prompt": "say " * 40, "completion": "it is 7"}
    cut = {"prompt": "say", "completion": "it is " * 40}
    rows = [{"prompt": "say", "completion": "it is 7"}] * 5 + [long] * 2 + [cut] * 3
    method = SftMethod(max_length=40, num_train_epochs=1, per_device_batch_size=2)

    said = estimated(base, tmp_path, rows, method, LoraPeft(r=2))
    _, reports = train(base, tmp_path / "run", method, LoraPeft(r=2), rows=rows)

    assert (said.rows, said.trained_rows, said.longest) == (10, 8, 40)
    assert (said.left_out, said.fully_masked, said.truncated) == (2, 2, 5)
    assert reports.started is not None
    assert said.trained_tokens == reports.started.trained_tokens
    assert reports.warnings[0].startswith("5 rows were cut")
    assert reports.warnings[1].startswith("2 rows were left out")


def test_a_base_whose_weights_are_elsewhere_is_told_by_its_config(base: Path) -> None:
    here, told = shape_of(base), shape_of(base, weights=False)
    assert (here.assumed, told.assumed) == (False, True)
    assert dict(told.tensors) == dict(here.tensors)
