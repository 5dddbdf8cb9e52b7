"""Methods that learn from the model's own answers: what they are asked, and what warns."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.rows import Message, Prompt
from engine.spec import GrpoMethod, LoraPeft, PpoMethod
from engine.train.examples import Asked
from engine.train.prompting import Prompts
from tests.bases import make_base
from tests.engine.train.runs import train
from tests.workers import REPO

CONSTANT = {"type": "length", "unit": "characters", "minimum": 0, "maximum": 1000}
ASCII = {"type": "regex", "input": "{{ sample.output_text }}", "pattern": "^[ -~]+$"}
KIND = {
    "type": "string_check",
    "input": "{{ sample.output_text }}",
    "operation": "like",
    "reference": "I am glad to help.",
}
TINY = REPO / "examples" / "models" / "luthier-tiny"
SMALL: dict[str, Any] = {
    "per_device_batch_size": 16,
    "max_length": 32,
    "max_completion_length": 2,
    "learning_rate": 2e-2,
    "warmup_ratio": 0.0,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


def example(name: str) -> list[dict[str, Any]]:
    lines = (REPO / "examples" / "data" / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def asked(count: int) -> list[Asked]:
    return [Asked(Prompt(prompt=(Message(role="user", content="a"),)), [i]) for i in range(count)]


def test_every_prompt_comes_once_before_any_comes_again() -> None:
    prompts = Prompts(asked(5), [], seed=1)
    order = prompts.order(15)
    assert [sorted(order[i : i + 5]) for i in (0, 5, 10)] == [[0, 1, 2, 3, 4]] * 3
    assert order[:5] != order[5:10]
    assert [prompts.order(12, first=7), prompts.order(15)[7:12]] == [order[7:12]] * 2
    assert [each.input_ids[0] for each in prompts.batch(2, 3)] == order[6:9]


@pytest.mark.parametrize(
    "method",
    [PpoMethod(**SMALL, grader=CONSTANT, max_steps=4),
     GrpoMethod(**SMALL, grader=CONSTANT, max_steps=4, num_generations=4)],
    ids=["ppo", "grpo"],
)  # fmt: skip
def test_a_reward_that_is_the_same_for_every_answer_is_told(
    base: Path, tmp_path: Path, method: PpoMethod | GrpoMethod
) -> None:
    _, reports = train(base, tmp_path / "run", method, LoraPeft(r=4))
    assert sum("the same reward" in warning for warning in reports.warnings) == 1


@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_a_reward_is_raised(both_manners: Path, tmp_path: Path, method: str) -> None:
    own = {"num_generations": 4, "beta": 1e-3} if method == "grpo" else {"kl_coef": 0.0}
    kind = GrpoMethod if method == "grpo" else PpoMethod
    made = kind(
        per_device_batch_size=16,
        max_length=48,
        max_completion_length=24,
        learning_rate=1e-3,
        warmup_ratio=0.0,
        max_steps=12,
        validation_split=0.3,
        grader=KIND,
        **own,
    )
    given: dict[str, Any] = {"rows": example("prompts")[:100], "init_from": both_manners}
    finished, reports = train(TINY, tmp_path / "run", made, LoraPeft(r=8), **given)
    rewards = [metrics["eval_reward"] for _, metrics in reports.evaluations]
    assert rewards[-1] > rewards[0] + 0.25, "it learns"
    assert finished.metrics["steps"] == 12


@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_kl_above_its_bound_ends_the_run_when_asked(
    base: Path, tmp_path: Path, method: str
) -> None:
    own = {"num_generations": 4, "beta": 1e-3} if method == "grpo" else {"kl_coef": 0.0}
    kind = GrpoMethod if method == "grpo" else PpoMethod
    made = kind(**SMALL, grader=ASCII, max_steps=12, **own)
    _, reports = train(base, tmp_path / "free", made, LoraPeft(r=8))
    assert len(reports.metrics) == 12
    reached = max(metrics["kl"] for metrics in reports.metrics.values())

    bounded = made.model_copy(update={"max_kl": reached / 4, "on_max_kl": "stop"})
    _, reports = train(base, tmp_path / "bounded", bounded, LoraPeft(r=8))
    assert len(reports.metrics) < 12
    assert any("training ends here" in warning for warning in reports.warnings)


def test_a_penalty_keeps_the_policy_near_where_it_started(base: Path, tmp_path: Path) -> None:
    kl = {}
    for kl_coef in (0.0, 1.0):
        method = PpoMethod(**SMALL, grader=ASCII, max_steps=15, kl_coef=kl_coef)
        _, reports = train(base, tmp_path / str(kl_coef), method, LoraPeft(r=8))
        kl[kl_coef] = sum(reports.metrics[step]["kl"] for step in range(11, 16)) / 5
    assert abs(kl[1.0]) < kl[0.0] / 2


def test_the_coefficient_adapts_to_its_target(base: Path, tmp_path: Path) -> None:
    method = PpoMethod(
        **SMALL, grader=ASCII, max_steps=8, kl_control="adaptive", kl_target=1e3, kl_horizon=16
    )
    _, reports = train(base, tmp_path / "run", method, LoraPeft(r=4))
    coefficients = [reports.metrics[step]["kl_coef"] for step in sorted(reports.metrics)]
    assert coefficients == sorted(coefficients, reverse=True)
    assert coefficients[-1] < coefficients[0] / 2
