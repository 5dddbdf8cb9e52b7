"""Jobs that learn from several datasets: admitted, kept, brought to the child, and remembered."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from engine.plan import Report
from jobs.admission import admit
from jobs.errors import InUse, NotFound, SpecInvalid
from jobs.mixture import datasets_of
from jobs.model import JobSpec, Status
from tests.engine.train.runs import rows_for
from tests.jobs.test_runner import Script, Scripted, finish, runner_of
from tests.workers import House, conversations


@pytest.fixture
def house(make_house: Callable[..., House]) -> House:
    return make_house()


def rows_of(house: House, *counts: int) -> list[str]:
    return [house.add_dataset(conversations(count)) for count in counts]


def mixed(*ids: str, replay: str | None = None, **changed: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "base_model": "tiny",
        "mixture": [{"dataset": id, "weight": i + 1} for i, id in enumerate(ids)],
        "method": {"type": "sft", "max_length": 64},
    }
    return spec | ({"replay": {"dataset": replay, "ratio": 0.5}} if replay else {}) | changed


def admitted(house: House, spec: dict[str, Any], tenant_id: str | None = None) -> JobSpec:
    given = JobSpec.model_validate(spec)
    return admit(
        house.store, house.bases, tenant_id or house.tenant_id, given, max_lora_rank=64
    ).spec


def problems(house: House, spec: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(SpecInvalid) as refusal:
        admitted(house, spec)
    return {problem.param: problem.code for problem in refusal.value.problems}


def test_every_dataset_is_looked_up_and_must_be_the_tenant_s(house: House) -> None:
    first, second, third = rows_of(house, 3, 4, 5)
    spec = mixed(first, second, replay=third)
    assert list(datasets_of(admitted(house, spec))) == [
        "mixture.0.dataset",
        "mixture.1.dataset",
        "replay.dataset",
    ]
    for missing in (mixed(first, "ds_" + "0" * 24), mixed(first, replay="ds_" + "0" * 24)):
        with pytest.raises(NotFound):
            admitted(house, missing)
    with pytest.raises(NotFound):
        admitted(house, spec, house.store.tenants.create("other").id)


def test_every_row_type_must_fit_and_no_rows_come_twice(house: House) -> None:
    (first,) = rows_of(house, 3)
    pairs = house.add_dataset(rows_for("dpo", 3), "preference")
    again = house.add_dataset(conversations(3))
    assert problems(house, mixed(first, pairs, again, replay=pairs)) == {
        "mixture.1.dataset": "wrong_row_type",
        "mixture.2.dataset": "same_dataset",
        "replay.dataset": "same_dataset",
    }


def test_methods_that_read_in_an_order_of_their_own_take_one_dataset(house: House) -> None:
    pairs = [house.add_dataset(rows_for("dpo", n), "preference") for n in (3, 4, 5)]
    spec = mixed(*pairs[:2], replay=pairs[2], method={"type": "dpo", "max_length": 64})
    assert problems(house, spec) == {
        "mixture": "mixture_unsupported",
        "replay": "mixture_unsupported",
    }


@pytest.mark.parametrize("peft", ["prompt_tuning", "prefix_tuning"])
def test_virtual_tokens_and_packed_rows_exclude_each_other(house: House, peft: str) -> None:
    spec = mixed(*rows_of(house, 3, 4), peft={"type": peft})
    spec["method"]["packing"] = True
    assert problems(house, spec) == {"method.packing": "combination_unsupported"}
    admitted(house, spec | {"peft": {"type": "lora"}})


@pytest.mark.parametrize(
    "given",
    [
        {"dataset": "ds_1"},
        {"mixture": []},
        {"mixture": None},
        {"mixture": [{"dataset": "ds_1", "weight": 0}]},
        {"mixture": [{"dataset": "ds_1", "weight": "inf"}]},
        {"replay": {"dataset": "ds_1", "ratio": 0}},
        {"replay": {"ratio": 1}},
    ],
    ids=json.dumps,
)
def test_what_cannot_be_meant_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        JobSpec.model_validate(mixed("ds_1", "ds_2") | given)


def test_a_dataset_that_any_field_names_stays_while_the_job_lives(house: House) -> None:
    ids = rows_of(house, 3, 4, 5)
    spec = JobSpec.model_validate(mixed(*ids[:2], replay=ids[2]))
    job_id = house.store.jobs.submit(house.tenant_id, spec, base_revision="r").job.id
    for id in ids:
        with pytest.raises(InUse, match=job_id):
            house.store.datasets.delete(house.tenant_id, id)
    house.store.jobs.cancel(house.tenant_id, job_id)
    for id in ids:
        house.store.datasets.delete(house.tenant_id, id)
    with pytest.raises(NotFound):
        house.store.jobs.submit(house.tenant_id, spec, base_revision="r")


def test_a_stage_keeps_its_datasets_while_it_waits_and_its_job_gets_them(house: House) -> None:
    first, second, third = rows_of(house, 3, 4, 5)
    made = house.start_pipeline(
        {
            "one": {"dataset": first, "method": {"type": "sft", "max_length": 64}},
            "two": mixed(first, second, replay=third) | {"init": "@one"},
        }
    )
    for id in (second, third):
        with pytest.raises(InUse, match=made.id):
            house.store.datasets.delete(house.tenant_id, id)
    assert made.stages[1].spec.mixture is not None
    with pytest.raises(SpecInvalid) as refusal:
        house.start_pipeline({"one": mixed(first, "ds_" + "1" * 24)})
    assert [p.param for p in refusal.value.problems] == ["stages.one.mixture.1.dataset"]


def test_the_child_gets_the_rows_of_each_and_the_result_remembers_all(house: House) -> None:
    ids = rows_of(house, 30, 40, 50)
    spec = admitted(house, mixed(*ids[:2], replay=ids[2]))
    revision = house.bases.find("tiny").revision
    job_id = house.store.jobs.submit(house.tenant_id, spec, base_revision=revision).job.id
    seen: list[tuple[str, int, float]] = []

    def look(script: Script) -> Report | None:
        plan = script.plan
        assert plan.replay is not None
        assert plan.row_paths == tuple(part.path for part in (*plan.mixture, plan.replay))
        assert plan.dataset_path == plan.mixture[0].path
        for part in (*plan.mixture, plan.replay):
            lines = Path(part.path).read_text().count("\n") + 1
            seen.append((part.dataset_id, lines, part.share))
        return None

    runner, _ = runner_of(house, Scripted([look, finish]))
    runner.run_next("default")

    job = house.job(job_id)
    assert job.status is Status.SUCCEEDED
    assert seen == [(ids[0], 30, 1.0), (ids[1], 40, 2.0), (ids[2], 50, 0.5)]
    assert job.adapter_id is not None
    adapter = house.store.adapters.get(house.tenant_id, job.adapter_id)
    named = [dataset["id"] for dataset in adapter.manifest["lineage"]["datasets"]]
    assert named == ids
    assert job.estimate is not None
    assert (job.estimate.rows, job.estimate.trained_rows) == (120, 70 + 35)


def test_what_is_left_open_is_settled_by_all_rows(house: House) -> None:
    ids = rows_of(house, 100, 200)
    open_ = {"type": "sft", "max_length": 64, "num_train_epochs": "auto"}
    assert admitted(house, mixed(*ids, method=open_)).method.num_train_epochs == 10
    replayed = mixed(*ids, method=open_) | {
        "replay": {"dataset": rows_of(house, 300)[0], "ratio": 1.0}
    }
    assert admitted(house, replayed).method.num_train_epochs == 5


def test_packed_rows_are_fewer_to_fill_batches_with(house: House) -> None:
    """Two hundred rows of about 130 bytes; eighty of 512 tokens hold them all many times over."""
    (id,) = rows_of(house, 200)
    found = {}
    for packing in (False, True):
        method = {
            "type": "sft",
            "max_length": 512,
            "packing": packing,
            "per_device_batch_size": "auto",
            "num_train_epochs": "auto",
        }
        spec = {"base_model": "tiny", "dataset": id, "method": method}
        settled = admitted(house, spec).method
        found[packing] = settled.per_device_batch_size, settled.num_train_epochs
    assert found == {False: (8, 10), True: (1, 10)}
