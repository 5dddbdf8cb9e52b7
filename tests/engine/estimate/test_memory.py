"""Memory by part: how it moves with what the job asks for, and how near it is to what was held."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.bases import BaseModel
from engine.estimate.base import BaseShape, base_shape
from engine.estimate.counting import expected_longest
from engine.estimate.forecast import Asked, Worker, forecast
from engine.estimate.memory import memory_parts, peak
from engine.plan import Failed, Finished, TrainPlan
from engine.render import load_renderer
from engine.rows import iter_rows
from engine.spec import (
    FullPeft,
    GrpoMethod,
    LoraPeft,
    Method,
    Peft,
    PpoMethod,
    QloraPeft,
    SftMethod,
)
from jobs.estimating import shape_of
from jobs.launcher import LocalLauncher

TINY = Path(__file__).parents[3] / "examples/models/luthier-tiny"
GRADER: Any = {"type": "length", "name": "l", "input": "{{ sample.output_text }}", "maximum": 9}
# How far the estimate may be from the peak that was held, either way. Seen on a CPU with batches
# of 16 rows of 500 tokens: 0.8 (LoRA, full) to 1.3; the C library's allocator decides.
FACTOR = 2.0
SEVEN_B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}


@pytest.fixture
def large() -> BaseShape:
    return base_shape(SEVEN_B, None)


def sizes(base: BaseShape, method: Method, peft: Peft, **more: Any) -> dict[str, int]:
    parts = memory_parts(base, method, peft, 512, "cuda", **more)
    return {name: part.bytes for name, part in parts.items()} | {"peak": peak(parts)}


def test_a_seven_billion_base_has_the_sizes_that_are_known_of_it(large: BaseShape) -> None:
    assert large.parameters == 6_738_415_616
    full = sizes(large, SftMethod(), FullPeft())
    lora, qlora = sizes(large, SftMethod(), LoraPeft()), sizes(large, SftMethod(), QloraPeft())
    assert full["weights"] == lora["weights"] == 2 * large.parameters
    assert full["optimizer"] == 2 * full["gradients"] == 4 * large.parameters
    assert lora["optimizer"] < full["optimizer"] / 50
    assert qlora["weights"] < 0.31 * lora["weights"]  # Dettmers et al. 2023: 4 bits and a bit more


def test_checkpointing_keeps_less(large: BaseShape) -> None:
    plain = sizes(large, SftMethod(), LoraPeft())
    saving = sizes(large, SftMethod(gradient_checkpointing=True), LoraPeft())
    assert saving["activations"] < plain["activations"] / 8
    assert saving["peak"] < plain["peak"]


def test_ppo_shares_the_base_and_a_full_policy_cannot(large: BaseShape) -> None:
    ppo = sizes(large, PpoMethod(grader=GRADER), LoraPeft(), continues=True)
    assert ppo["weights"] == 2 * large.parameters
    assert {"value", "reference", "generation"} <= ppo.keys()
    grpo = GrpoMethod(reward_model="ad_1", beta=0.1)
    whole = sizes(large, grpo, FullPeft(), reward_peft=LoraPeft())
    assert whole["reference"] == 2 * large.parameters
    assert whole["reward"] > 2 * large.parameters


def test_what_is_not_needed_at_once_is_not_added(large: BaseShape) -> None:
    ppo = sizes(large, PpoMethod(grader=GRADER), LoraPeft())
    assert ppo["peak"] == sum(ppo.values()) - ppo["peak"] - ppo["generation"]


def test_a_batch_is_as_long_as_its_longest_row() -> None:
    assert expected_longest([1, 2, 3, 4], 1) == pytest.approx(2.5)
    assert expected_longest([1, 3], 2) == pytest.approx(2.5)  # 1, 3, 3, 3
    assert expected_longest([5] * 7, 3) == pytest.approx(5)


@pytest.fixture(scope="module")
def launcher() -> LocalLauncher:
    return LocalLauncher()


@pytest.mark.slow
@pytest.mark.parametrize("peft", [LoraPeft(), FullPeft()], ids=["lora", "full"])
def test_the_peak_is_near_what_a_child_really_held(
    launcher: LocalLauncher, tmp_path: Path, peft: Peft
) -> None:
    rows = tmp_path / "rows.jsonl"
    row = {"prompt": "say it", "completion": "the cat sat on the mat and then " * 60}
    rows.write_text("\n".join([json.dumps(row)] * 16))
    method = SftMethod(max_steps=2, per_device_batch_size=8, max_length=400)
    plan = TrainPlan(
        base_name="luthier-tiny",
        base_path=TINY,
        dataset_path=rows,
        dataset_format="jsonl",
        row_type="conversation",
        method=method,
        peft=peft,
        seed=1,
        checkpoint_every=100,
        work_dir=tmp_path,
        resume_from=None,
        threads=1,
    )
    base = BaseModel("luthier-tiny", TINY, "r")
    said = forecast(
        Asked(method, peft, 1),
        shape_of(base),
        iter_rows(rows, "jsonl", "conversation"),
        load_renderer(TINY),
        Worker("cpu", 1),
    )

    child = launcher.start(plan)
    try:
        while not isinstance(last := child.receive(60), Finished | Failed):
            pass
    finally:
        child.kill()

    assert isinstance(last, Finished), last
    held = last.metrics["peak_memory_bytes"]
    print(f"{peft.type}: {said.peak_memory_bytes / held:.2f} of the {held / 1e6:.0f} MB held")
    assert held / FACTOR < said.peak_memory_bytes < held * FACTOR
