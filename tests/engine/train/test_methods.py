"""The contract of every method: what is resumed ends as what was never stopped, and it learns."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from engine.graders import asking
from engine.plan import GraderModel
from engine.spec import (
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
    QloraPeft,
    RewardMethod,
    SftMethod,
)
from engine.train.child import METHODS
from engine.train.errors import StopRequested
from tests.bases import make_base
from tests.engine.train.runs import bytes_of, train
from tests.record import Record

LORA, FULL = LoraPeft(r=4, lora_dropout=0.3), FullPeft()
DORA, QLORA = LoraPeft(r=4, use_dora=True), QloraPeft(r=4)
PROMPT, PREFIX = PromptTuningPeft(num_virtual_tokens=4), PrefixTuningPeft(num_virtual_tokens=4)
PROJECTED = PrefixTuningPeft(num_virtual_tokens=4, prefix_projection=True, encoder_hidden_size=8)
# 11 rows in batches of 2 x 2: both the last batch and the last accumulation are short.
SHORT: dict[str, Any] = {
    "per_device_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-3,
    "max_length": 64,
}
OFFLINE: dict[str, Any] = SHORT | {"num_train_epochs": 2}
# Two examples a row, so six rows: in the second step of an epoch one batch of two has none.
PACKED: dict[str, Any] = SHORT | {"packing": True, "max_length": 32, "num_train_epochs": 3}
ONLINE: dict[str, Any] = SHORT | {
    "max_steps": 6,
    "max_completion_length": 5,
    "reward_model": "ad_0",
}
GRADED: dict[str, Any] = {name: ONLINE[name] for name in ONLINE if name != "reward_model"} | {
    "grader": {"type": "length", "name": "long", "unit": "characters", "minimum": 1, "maximum": 20}
}
WEIGHED: dict[str, Any] = {
    "type": "multi",
    "graders": {
        "good": {
            "type": "score_model",
            "model": "ad_0",
            "input": [
                {"role": "user", "content": "say it"},
                {"role": "assistant", "content": "{{ sample.output_text }}"},
            ],
        },
        "long": GRADED["grader"],
    },
    "calculate_output": "good + long",
}
MIXED: dict[str, Any] = GRADED | {"grader": WEIGHED}
CONTRACT: list[tuple[Method, Peft]] = [
    (SftMethod(**OFFLINE), LORA),
    (SftMethod(**OFFLINE), FULL),
    (SftMethod(**OFFLINE), DORA),
    (SftMethod(**OFFLINE), QLORA),
    (SftMethod(**OFFLINE), QloraPeft(r=4, use_dora=True)),
    (SftMethod(**OFFLINE, kl_coef=0.3), LORA),
    (SftMethod(**OFFLINE, kl_coef=0.3), FULL),
    (SftMethod(**OFFLINE, kl_coef=0.3), PREFIX),
    (SftMethod(**PACKED), LORA),
    (SftMethod(**PACKED, kl_coef=0.3), FULL),
    (SftMethod(**OFFLINE), PROMPT),
    (SftMethod(**OFFLINE), PREFIX),
    (SftMethod(**OFFLINE), PROJECTED),
    (DpoMethod(**OFFLINE), PROJECTED),
    (RewardMethod(**OFFLINE), QLORA),
    (DpoMethod(**OFFLINE), QLORA),
    (DpoMethod(**OFFLINE), PROMPT),
    (DpoMethod(**OFFLINE), PREFIX),
    (OrpoMethod(**OFFLINE), PROMPT),
    (OrpoMethod(**OFFLINE), PREFIX),
    (KtoMethod(**OFFLINE), PROMPT),
    (KtoMethod(**OFFLINE), PREFIX),
    (PpoMethod(**ONLINE), QLORA),
    (GrpoMethod(**ONLINE, num_generations=2), PROMPT),
    (GrpoMethod(**ONLINE, num_generations=2), PREFIX),
    (GrpoMethod(**ONLINE, num_generations=2), QLORA),
    (RewardMethod(**OFFLINE), LORA),
    (RewardMethod(**OFFLINE), FULL),
    (DpoMethod(**OFFLINE), LORA),
    (DpoMethod(**OFFLINE), FULL),
    (OrpoMethod(**OFFLINE), LORA),
    (OrpoMethod(**OFFLINE), FULL),
    (KtoMethod(**OFFLINE), LORA),
    (KtoMethod(**OFFLINE), FULL),
    (PpoMethod(**ONLINE, num_mini_batches=2, kl_control="adaptive"), LORA),
    (GrpoMethod(**ONLINE, num_generations=2, beta=0.1), LORA),
    (GrpoMethod(**ONLINE, num_generations=2), FULL),
    (PpoMethod(**GRADED), LORA),
    (GrpoMethod(**GRADED, num_generations=2, num_iterations=2), LORA),
    (PpoMethod(**MIXED), LORA),
    (GrpoMethod(**MIXED, num_generations=2), LORA),
    (GrpoMethod(**MIXED, num_generations=2), PROMPT),
]
IDS = [
    f"{method.type}-{peft.type}"
    + "-projected" * getattr(peft, "prefix_projection", False)
    + "-dora" * getattr(peft, "use_dora", False)
    + "-packed" * getattr(method, "packing", False)
    + "-kl" * (method.type == "sft" and method.kl_coef > 0)
    + "-graded" * (getattr(method, "grader", None) is not None)
    + "-mixed" * any(asking(getattr(method, "grader", None)))
    for method, peft in CONTRACT
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def reward_model(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work_dir = tmp_path_factory.mktemp("reward") / "run"
    finished, _ = train(base, work_dir, RewardMethod(**OFFLINE), LoraPeft(r=4))
    return finished.path


@pytest.fixture(autouse=True)
def quantizes(request: pytest.FixtureRequest) -> None:
    if "qlora" in request.node.name:
        pytest.importorskip("bitsandbytes")


def inputs(method: Method, reward_model: Path, base: Path) -> dict[str, Any]:
    if any(asking(getattr(method, "grader", None))):
        return {"grader_models": {"ad_0": GraderModel(base_path=base, folder=reward_model)}}
    return {"reward_from": reward_model} if getattr(method, "reward_model", None) else {}


def test_every_method_is_under_the_contract() -> None:
    assert {method.type for method, _ in CONTRACT} == set(METHODS)


@pytest.mark.parametrize(("method", "peft"), CONTRACT, ids=IDS)
def test_a_run_resumed_from_any_checkpoint_is_the_run_that_was_not_stopped(
    base: Path, reward_model: Path, tmp_path: Path, method: Method, peft: Peft, record: Record
) -> None:
    given = inputs(method, reward_model, base)
    whole, reports = train(base, tmp_path / "whole", method, peft, **given)
    assert list(reports.metrics) == [1, 2, 3, 4, 5, 6]
    kept = reports.checkpoints
    stride = getattr(method, "num_iterations", 1)
    # In the middle of an epoch, at its end, and from a resumed run's own checkpoint.
    for step in (2, 3, 5) if stride == 1 else (2, 4):
        folder = kept / f"checkpoint-{step}"
        resumed, again = train(
            base, tmp_path / f"from-{step}", method, peft, resume_from=folder, **given
        )
        kept = again.checkpoints if step == 3 else kept
        expected = {n: found for n, found in reports.metrics.items() if n > step}
        differing = [n for n, f in timeless(expected).items() if timeless(again.metrics)[n] != f]
        record("R16", "steps that differ in a resumed run, any method", len(differing), exactly=0)
        assert timeless(again.metrics) == timeless(expected)
        assert bytes_of(resumed) == bytes_of(whole)
        assert (resumed.probes, resumed.scores) == (whole.probes, whole.scores)
        assert resumed.metrics == whole.metrics


def timeless(metrics: dict[int, dict[str, float]]) -> dict[int, dict[str, float]]:
    return {
        step: {name: value for name, value in found.items() if name != "step_time"}
        for step, found in metrics.items()
    }


@pytest.mark.parametrize(("method", "peft"), CONTRACT, ids=IDS)
def test_a_run_is_cancelled_and_paused_within_a_step(
    base: Path, reward_model: Path, tmp_path: Path, method: Method, peft: Peft
) -> None:
    for directive in ("cancel", "pause"):
        with pytest.raises(StopRequested, match=directive):
            train(
                base,
                tmp_path / directive,
                method,
                peft,
                directive=directive,
                **inputs(method, reward_model, base),
            )
    assert not list((tmp_path / "cancel" / "kept").glob("*"))
    first = getattr(method, "num_iterations", 1)
    assert [p.name for p in (tmp_path / "pause" / "kept").iterdir()] == [f"checkpoint-{first}"]


GOING_ON: list[tuple[Method, Peft]] = [
    (SftMethod(**OFFLINE), LORA),
    (SftMethod(**OFFLINE), QLORA),
    (SftMethod(**OFFLINE), FULL),
    (SftMethod(**OFFLINE), PROMPT),
    (DpoMethod(**OFFLINE), PROMPT),
    (KtoMethod(**OFFLINE), PREFIX),
    (OrpoMethod(**OFFLINE), PREFIX),
    (GrpoMethod(**ONLINE, num_generations=2, beta=0.1), PROMPT),
]


@pytest.mark.parametrize(
    ("method", "peft"), GOING_ON, ids=[f"{m.type}-{p.type}" for m, p in GOING_ON]
)
def test_a_run_goes_on_from_the_adapter_it_is_given(
    base: Path, reward_model: Path, tmp_path: Path, method: Method, peft: Peft
) -> None:
    given = inputs(method, reward_model, base)
    start, _ = train(base, tmp_path / "start", SftMethod(**OFFLINE), peft)
    still = method.model_copy(update={"learning_rate": 1e-30})
    same, _ = train(base, tmp_path / "still", still, peft, init_from=start.path, **given)
    was, now = (load_file(each.path / weights_of(peft)) for each in (start, same))
    assert was.keys() == now.keys()
    assert all(torch.equal(was[name], now[name]) for name in was)
    moved, reports = train(base, tmp_path / "moved", method, peft, init_from=start.path, **given)
    assert bytes_of(moved)[weights_of(peft)] != bytes_of(start)[weights_of(peft)]
    folder = reports.checkpoints / "checkpoint-3"
    given["resume_from"] = folder
    resumed, _ = train(base, tmp_path / "resumed", method, peft, init_from=start.path, **given)
    assert bytes_of(resumed) == bytes_of(moved)


def weights_of(peft: Peft) -> str:
    return "model.safetensors" if peft.type == "full" else "adapter_model.safetensors"
