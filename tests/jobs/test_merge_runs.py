"""A merge as a job: its child gets the parents, its adapter names them, and it dies like any."""

from collections.abc import Callable
from typing import Any

import pytest

from adapters import registry
from adapters.errors import AdapterMissing
from adapters.manifest import DatasetRef, Manifest
from engine.merging import MergeMethod
from engine.plan import Merged, MergePlan, Report
from engine.spec import LoraPeft
from jobs.errors import InUse
from jobs.model import Adapter, JobError, MergeSpec, Status
from jobs.publishing import adapter_id_of
from tests.adapter_rows import add_adapter
from tests.jobs.test_runner import Script, Scripted, finish, runner_of, wait_for_word
from tests.workers import House


@pytest.fixture
def house(make_house: Callable[..., House]) -> House:
    return make_house()


def parent(house: House, dataset: str, **metrics: Any) -> Adapter:
    revision = house.bases.find("tiny").revision
    made = add_adapter(house.store, house.objects, house.tenant_id, base_revision=revision)
    registry.remove(house.objects, house.tenant_id, made.id)
    manifest = Manifest.model_validate(made.manifest)
    refs = (DatasetRef(id="ds_both", sha256="1" * 64), DatasetRef(id=dataset, sha256="2" * 64))
    lineage = manifest.lineage.model_copy(update={"datasets": refs})
    changed = manifest.model_copy(update={"metrics": metrics, "lineage": lineage})
    folder = house.settings.data_dir / made.id
    folder.mkdir()
    (folder / "adapter_config.json").write_text(dataset)
    registry.publish(house.objects, house.tenant_id, folder, changed)
    return made


def submit(house: House, *parents: Adapter) -> str:
    adapters = [{"id": one.id, "weight": 0.5 + n} for n, one in enumerate(parents)]
    spec = MergeSpec(
        base_model="tiny",
        method=MergeMethod(adapters=adapters, combination_type="cat"),  # type: ignore[arg-type]  # as a client writes it
        peft=LoraPeft(r=1, lora_alpha=1),
        seed=9,
        name="both",
    )
    revision = house.bases.find("tiny").revision
    return house.store.jobs.submit(house.tenant_id, spec, base_revision=revision).job.id


def run(house: House, *scripts: list[Callable[[Script], Report | None]]) -> Scripted:
    launcher = Scripted(*scripts)
    runner, _ = runner_of(house, launcher)
    for _ in scripts:
        runner.run_next("default")
    return launcher


def merged(script: Script) -> Report:
    return Merged(adapters=2, error=0.25, logprob_gap=0.125)


def test_the_child_finds_the_parents_and_the_result_names_them(house: House) -> None:
    pair = [parent(house, "ds_a"), parent(house, "ds_b", quantization_logprob_gap=0.5)]
    job_id = submit(house, *pair)
    seen: list[str] = []

    def look(script: Script) -> Report | None:
        plan: Any = script.plan
        assert isinstance(plan, MergePlan)
        seen.extend((one.path / "adapter_config.json").read_text() for one in plan.parents)
        assert [one.adapter_id for one in plan.parents] == [one.id for one in pair]
        assert [one.weight for one in plan.parents] == [0.5, 1.5]
        assert [one.quantization_logprob_gap for one in plan.parents] == [None, 0.5]
        assert (plan.seed, plan.base_name, plan.contract) == (9, "tiny", {})
        return None

    run(house, [look, merged, finish])

    assert seen == ["ds_a", "ds_b"]
    job = house.job(job_id)
    assert (job.status, job.error) == (Status.SUCCEEDED, None)
    assert isinstance(job.spec, MergeSpec)
    assert job.adapter_id is not None
    made = house.store.adapters.get(house.tenant_id, job.adapter_id)
    manifest = registry.read_manifest(house.objects, house.tenant_id, made.id)
    assert (made.name, manifest.kind, manifest.peft["r"]) == ("both", "lora", 1)
    assert manifest.method is not None
    assert manifest.method["type"] == "merge"
    parents = [(one.adapter_id, one.weight) for one in manifest.lineage.parents]
    assert parents == [(pair[0].id, 0.5), (pair[1].id, 1.5)]
    assert [ref.id for ref in manifest.lineage.datasets] == ["ds_both", "ds_a", "ds_b"]
    assert manifest.lineage.parent_adapter_id is None
    events, _ = house.store.jobs.events(house.tenant_id, job_id)
    told = next(event for event in events if event.message.startswith("merged 2 adapters"))
    assert told.data == {"adapters": 2, "error": 0.25, "logprob_gap": 0.125}


def test_parents_stay_while_their_merge_is_live(house: House) -> None:
    pair = [parent(house, "ds_a"), parent(house, "ds_b")]
    job_id = submit(house, *pair)
    for one in pair:
        with pytest.raises(InUse, match=job_id):
            house.store.adapters.delete(house.tenant_id, one.id)
    run(house, [finish])
    for one in pair:
        house.store.adapters.delete(house.tenant_id, one.id)


def test_a_merge_that_crashes_begins_again_and_leaves_nothing_of_its_first_attempt(
    house: House,
) -> None:
    def crash(script: Script) -> Report | None:
        raise EOFError

    job_id = submit(house, parent(house, "ds_a"), parent(house, "ds_b"))
    run(house, [merged, crash], [merged, finish])
    job = house.job(job_id)
    assert (job.status, job.attempt) == (Status.SUCCEEDED, 2)
    assert job.adapter_id == adapter_id_of(job_id, 2)
    with pytest.raises(AdapterMissing):
        registry.read_manifest(house.objects, house.tenant_id, adapter_id_of(job_id, 1))


def test_a_merge_is_cancelled_and_paused_like_any_job(house: House) -> None:
    pair = [parent(house, "ds_a"), parent(house, "ds_b")]
    waiting = submit(house, *pair)
    assert house.store.jobs.cancel(house.tenant_id, waiting).status is Status.CANCELLED
    job_id = submit(house, *pair)

    def pause(script: Script) -> Report | None:
        house.store.jobs.pause(house.tenant_id, job_id)
        return None

    launcher = run(house, [pause, wait_for_word])
    assert launcher.started[0].told == ["pause"]
    assert house.job(job_id).status is Status.PAUSED
    house.store.jobs.resume(house.tenant_id, job_id)
    run(house, [finish])
    assert house.job(job_id).status is Status.SUCCEEDED


def test_a_parent_whose_files_are_gone_ends_the_merge_with_what_to_do(house: House) -> None:
    pair = [parent(house, "ds_a"), parent(house, "ds_b")]
    job_id = submit(house, *pair)
    registry.remove(house.objects, house.tenant_id, pair[1].id)
    launcher = run(house, [finish])
    error = house.job(job_id).error
    assert isinstance(error, JobError)
    assert (error.code, launcher.started) == ("adapter_missing", [])
    assert pair[1].id in error.message
