"""A job whose result vLLM could never serve is refused when it is posted; others are not."""

from collections.abc import Callable
from typing import Any

import pytest

from engine.spec import LoraPeft
from jobs.admission import admit
from jobs.errors import SpecInvalid
from jobs.model import JobSpec
from jobs.planning import plan
from jobs.serving import serving_warnings
from jobs.settings import Settings
from jobs.stages import PipelineSpec
from tests.workers import House, conversations

CODE = "generator_cannot_serve"


@pytest.fixture
def house(make_house: Callable[..., House]) -> House:
    return make_house()


def preferences() -> list[dict[str, Any]]:
    return [{"prompt": "say 1", "chosen": "it is 1", "rejected": "no"}] * 3


def spec(house: House, method: str = "sft", **peft: Any) -> JobSpec:
    rows = preferences() if method == "reward" else conversations(3)
    row_type: Any = "preference" if method == "reward" else "conversation"
    return JobSpec.model_validate(
        {
            "base_model": "tiny",
            "dataset": house.add_dataset(rows, row_type),
            "method": {"type": method, "max_length": 64},
            "peft": peft,
        }
    )


def problems(house: House, job: JobSpec, vllm_rank: int | None) -> dict[str, str]:
    try:
        admit(
            house.store, house.bases, house.tenant_id, job, max_lora_rank=64, qlora=True,
            vllm_rank=vllm_rank,
        )  # fmt: skip
    except SpecInvalid as refusal:
        return {problem.param: problem.code for problem in refusal.problems}
    return {}


@pytest.mark.parametrize(
    ("peft", "param"),
    [
        ({"type": "lora", "r": 8, "use_dora": True}, "peft.use_dora"),
        ({"type": "lora", "r": 17}, "peft.r"),
        ({"type": "qlora", "r": 17}, "peft.r"),
        ({"type": "prompt_tuning"}, "peft.type"),
        ({"type": "prefix_tuning"}, "peft.type"),
        ({"type": "full"}, "peft.type"),
    ],
)
def test_what_vllm_never_serves_is_refused_only_where_vllm_generates(
    house: House, peft: dict[str, Any], param: str
) -> None:
    job = spec(house, **peft)
    assert problems(house, job, 16) == {param: CODE}
    assert problems(house, job, None) == {}


@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_lora_up_to_the_rank_of_vllm_is_taken(house: House, kind: str) -> None:
    assert problems(house, spec(house, type=kind, r=16, use_rslora=True), 16) == {}


def test_a_reward_model_is_taken_with_a_warning(house: House) -> None:
    job = spec(house, "reward", type="lora", r=32, use_dora=True)
    assert problems(house, job, 16) == {}
    (warning,) = serving_warnings(job, 16)
    assert "POST /score" in warning
    assert serving_warnings(job, None) == ()
    assert serving_warnings(spec(house, type="lora"), 16) == ()


def test_a_stage_of_a_pipeline_is_held_to_the_same(house: House) -> None:
    job = spec(house, type="lora", r=4).model_copy(update={"peft": LoraPeft(use_dora=True)})
    stages = {"stages": {"one": job.model_dump(mode="json")}}
    with pytest.raises(SpecInvalid) as refusal:
        plan(
            house.store, house.bases, house.tenant_id, PipelineSpec.model_validate(stages),
            max_lora_rank=64, vllm_rank=16,
        )  # fmt: skip
    (problem,) = refusal.value.problems
    assert (problem.param, problem.code) == ("stages.one.peft.use_dora", CODE)


def test_vllm_is_named_with_its_url() -> None:
    with pytest.raises(ValueError, match="generator vllm needs vllm_url"):
        Settings(generator="vllm")
    settings = Settings(generator="vllm", vllm_url="http://vllm:8000", inference_url="http://no")
    assert (settings.inference, settings.vllm_rank) == ("http://vllm:8000", 16)
    ours = Settings(vllm_url="http://vllm:8000", inference_url="http://ours")
    assert (ours.inference, ours.vllm_rank) == ("http://ours", None)
