"""The adapters a job starts from reach its child as folders whose files were checked."""

from collections.abc import Callable
from typing import Any

import pytest

from adapters import registry
from adapters.manifest import MANIFEST_NAME
from engine.plan import Report
from engine.spec import LoraPeft, SftMethod
from jobs.leases import Leases
from jobs.model import Adapter, Claim, JobSpec, Status
from storage.keys import adapter_file
from tests.adapter_rows import LORA, add_adapter
from tests.jobs.test_runner import Script, Scripted, finish, runner_of
from tests.jobs.test_sources import Scored
from tests.workers import House, conversations


@pytest.fixture
def house(make_house: Callable[..., House]) -> House:
    return make_house()


def adapter(house: House, **changes: Any) -> Adapter:
    revision = house.bases.find("tiny").revision
    return add_adapter(
        house.store, house.objects, house.tenant_id, base_revision=revision, **changes
    )


def submit(house: House, init: str) -> str:
    spec = JobSpec(
        base_model="tiny",
        dataset=house.add_dataset(conversations(3)),
        method=SftMethod(),
        peft=LORA,  # type: ignore[arg-type]  # as a client writes it
        init=init,
    )
    revision = house.bases.find("tiny").revision
    return house.store.jobs.submit(house.tenant_id, spec, base_revision=revision).job.id


def run(house: House, *steps: Callable[[Script], Report | None]) -> Scripted:
    launcher = Scripted(list(steps))
    runner, _ = runner_of(house, launcher)
    runner.run_next("default")
    return launcher


def test_the_child_finds_the_adapter_it_goes_on_with_and_the_result_names_it(
    house: House,
) -> None:
    ours = adapter(house)
    job_id = submit(house, ours.id)
    seen: dict[str, str] = {}

    def look(script: Script) -> Report | None:
        assert script.plan.init_from is not None
        assert script.plan.init_from.is_relative_to(script.plan.work_dir)
        seen.update({path.name: path.read_text() for path in script.plan.init_from.iterdir()})
        return None

    launcher = run(house, look, finish)

    assert launcher.started[0].plan.reward_from is None
    manifest = seen.pop(MANIFEST_NAME)
    assert ours.id in manifest
    assert seen == {
        "adapter_config.json": "adapter_config.json of lora",
        "adapter_model.safetensors": "adapter_model.safetensors of lora",
    }
    job = house.job(job_id)
    assert job.status is Status.SUCCEEDED
    assert job.adapter_id is not None
    made = house.store.adapters.get(house.tenant_id, job.adapter_id)
    assert made.manifest["lineage"]["parent_adapter_id"] == ours.id


class WithReward(Leases):
    """Leases whose jobs are scored by a reward model."""

    reward_model = ""

    def claim(self, owner: str, queue: str) -> Claim | None:
        claim = super().claim(owner, queue)
        assert claim is not None
        spec = claim.job.spec.model_copy(update={"method": Scored(reward_model=self.reward_model)})
        job = claim.job.model_copy(update={"spec": spec})
        return claim.model_copy(update={"job": job})


def test_the_child_finds_the_reward_model_that_scores_it(house: House) -> None:
    policy, reward = adapter(house), adapter(house, kind="reward")
    submit(house, policy.id)
    house.store.leases = leases = WithReward(house.store.database, lease_s=3.0, max_attempts=3)
    leases.reward_model = reward.id
    read: list[str] = []

    def look(script: Script) -> Report | None:
        assert script.plan.reward_from is not None
        read.append((script.plan.reward_from / "adapter_config.json").read_text())
        return None

    run(house, look, finish)

    assert read == ["adapter_config.json of reward"]


def test_a_damaged_adapter_starts_no_child(house: House) -> None:
    ours = adapter(house)
    job_id = submit(house, ours.id)
    key = adapter_file(house.tenant_id, ours.id, "adapter_model.safetensors")
    house.objects.put(key, b"rotten")

    launcher = run(house, finish)

    job = house.job(job_id)
    assert launcher.started == []
    assert (job.status, job.error and job.error.code) == (Status.FAILED, "adapter_corrupt")
    assert job.error is not None
    assert "adapter_model.safetensors" in job.error.message
    assert house.tenant_id not in job.error.message


def test_an_adapter_whose_files_are_gone_ends_the_job_with_what_to_do(house: House) -> None:
    ours = adapter(house)
    job_id = submit(house, ours.id)
    registry.remove(house.objects, house.tenant_id, ours.id)

    run(house, finish)

    job = house.job(job_id)
    assert (job.status, job.error and job.error.code) == (Status.FAILED, "adapter_missing")


def test_the_worker_that_ends_a_stage_goes_on_with_the_next(house: House) -> None:
    made = house.submit_pipeline(house.add_dataset(conversations(3)), first=None, then="@first")
    seen: list[list[str]] = []

    def look(script: Script) -> Report | None:
        assert script.plan.init_from is not None
        assert script.plan.peft == LoraPeft(r=1, target_modules=("q_proj",))
        seen.append(sorted(path.name for path in script.plan.init_from.iterdir()))
        return None

    launcher = Scripted([finish], [look, finish])
    runner, _ = runner_of(house, launcher)
    assert runner.run_next("default")
    assert runner.run_next("default"), "no sweep is needed"

    done = house.store.pipelines.get(house.tenant_id, made.id)
    assert done.status is Status.SUCCEEDED
    assert seen == [["adapter_config.json", "adapter_model.safetensors", MANIFEST_NAME]]
    first, then = done.stages
    assert then.adapter_id is not None
    lineage = house.store.adapters.get(house.tenant_id, then.adapter_id).manifest["lineage"]
    assert (lineage["job_id"], lineage["parent_adapter_id"]) == (then.job_id, first.adapter_id)
