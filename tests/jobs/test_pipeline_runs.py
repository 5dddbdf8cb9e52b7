"""SFT, then a reward model, then PPO: one pipeline, real workers, a real, small model."""

from typing import Any

import pytest

from engine.render import load_renderer
from jobs.model import Status
from jobs.promotion import promote
from tests.jobs.conftest import Workshop
from tests.workers import House, conversations

SMALL = {"max_steps": 2, "per_device_batch_size": 4, "max_length": 64}
LORA = {"type": "lora", "r": 2, "target_modules": ["q_proj", "v_proj"]}


def pairs(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"say {n}", "chosen": f"number {n} it is", "rejected": "no"}
        for n in range(count)
    ]


def prompts(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"say {number}"} for number in range(count)]


@pytest.mark.slow
def test_one_pipeline_goes_from_rows_to_a_policy_that_was_scored(
    workshop: Workshop, tmp_path: Any
) -> None:
    house = workshop.house
    ppo = SMALL | {"type": "ppo", "reward_model": "@rm", "max_completion_length": 8}
    made = house.start_pipeline(
        {
            "sft": {
                "dataset": house.add_dataset(conversations(12)),
                "method": SMALL | {"type": "sft"},
                "peft": LORA,
            },
            "rm": {
                "dataset": house.add_dataset(pairs(12), "preference"),
                "method": SMALL | {"type": "reward"},
                "init": "@sft",
                "checkpoint_every": 1,
            },
            "ppo": {
                "dataset": house.add_dataset(prompts(12), "prompt"),
                "method": ppo,
                "init": "@sft",
            },
        }
    )
    for stage in ("sft", "rm", "ppo"):
        named = {each.name: each for each in house.store.pipelines.get(*_of(made)).stages}
        job_id = named[stage].job_id
        assert job_id is not None, named[stage]
        job = house.wait(job_id)
        assert job.status is Status.SUCCEEDED, (stage, job.error)
        _wait_moved(house)

    done = house.store.pipelines.get(*_of(made))
    assert done.status is Status.SUCCEEDED
    adapters = [
        house.store.adapters.get(house.tenant_id, stage.adapter_id or "") for stage in done.stages
    ]
    sft, reward, policy = adapters
    assert [adapter.kind for adapter in adapters] == ["lora", "reward", "lora"]
    assert reward.manifest["scores"]
    for made_from_it in (reward, policy):
        assert made_from_it.manifest["lineage"]["parent_adapter_id"] == sft.id
    assert policy.manifest["method"]["reward_model"] == reward.id

    rm = house.job(done.stages[1].job_id or "")
    checkpoint = house.store.jobs.checkpoints(house.tenant_id, rm.id)[0]
    base = house.bases.find("tiny", weights=True)
    contract = load_renderer(base.path).contract.model_dump(mode="json")
    early = promote(house.store, house.objects, rm, checkpoint, base, contract, tmp_path)
    assert early.kind == "reward"


def _of(pipeline: Any) -> tuple[str, str]:
    return pipeline.tenant_id, pipeline.id


def _wait_moved(house: House) -> None:
    """Until the worker has queued what the end of a job decides."""
    for pipeline_id in house.store.pipelines.unmoved():
        house.store.pipelines.move(pipeline_id)
