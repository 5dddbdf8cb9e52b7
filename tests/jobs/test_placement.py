"""Where jobs are put, and which cannot be spread."""

from collections.abc import Callable
from typing import Any

import pytest

from engine.spec import Resources
from jobs.admission import admit
from jobs.errors import SpecInvalid
from jobs.model import JobSpec
from jobs.placement import Placement
from tests.jobs.test_runner import Scripted, runner_of
from tests.workers import House, conversations

EIGHT = Placement(gpus={"default": 1, "a100x8": 8, "l4x2": 2}, max_nodes=2)


@pytest.mark.parametrize(
    ("gpus", "queue"), [(1, "default"), (2, "l4x2"), (3, "a100x8"), (8, "a100x8"), (9, None)]
)
def test_a_job_goes_to_the_smallest_class_that_has_its_gpus(gpus: int, queue: str | None) -> None:
    assert EIGHT.queue_for(Resources(gpus=gpus)) == queue


@pytest.fixture
def admitted(make_house: Callable[..., House]) -> Callable[..., JobSpec]:
    house = make_house()
    dataset_id = house.add_dataset(conversations(4))

    def admitted_(placement: Placement | None = EIGHT, **asked: Any) -> JobSpec:
        spec = JobSpec.model_validate(
            {
                "base_model": "tiny",
                "dataset": dataset_id,
                "method": {"type": "sft", "max_length": 64},
            }
            | asked
        )
        return admit(
            house.store, house.bases, house.tenant_id, spec, max_lora_rank=64, placement=placement
        ).spec

    return admitted_


@pytest.mark.parametrize(
    ("asked", "param", "code"),
    [
        ({"resources": {"gpus": 9}}, "resources.gpus", "too_many_gpus"),
        ({"resources": {"nodes": 3}}, "resources.nodes", "too_many_nodes"),
        (
            {"resources": {"gpus": 2}, "peft": {"type": "prompt_tuning", "num_virtual_tokens": 4}},
            "peft.type",
            "cannot_be_spread",
        ),
    ],
)
def test_what_cannot_run_is_refused_with_the_reason(
    admitted: Callable[..., JobSpec], asked: dict[str, Any], param: str, code: str
) -> None:
    with pytest.raises(SpecInvalid) as refused:
        admitted(**asked)
    assert [(p.param, p.code) for p in refused.value.problems] == [(param, code)]


def test_a_server_says_how_many_gpus_it_has(admitted: Callable[..., JobSpec]) -> None:
    with pytest.raises(SpecInvalid, match="ask for 1 at most"):
        admitted(placement=None, resources={"gpus": 2})
    assert admitted(resources={"gpus": 8}).resources == Resources(gpus=8)


@pytest.mark.parametrize("method", ["ppo", "grpo", "kto"])
def test_methods_that_are_not_spread_are_refused(
    admitted: Callable[..., JobSpec], method: str
) -> None:
    reward = {"grader": {"type": "length", "maximum": 9}} if method != "kto" else {}
    with pytest.raises(SpecInvalid) as refused:
        admitted(method={"type": method} | reward, resources={"gpus": 2})
    assert "cannot_be_spread" in {p.code for p in refused.value.problems}
    assert any("runs on one GPU" in p.message for p in refused.value.problems)


def test_a_full_fine_tuning_by_preferences_is_not_shared_out(
    admitted: Callable[..., JobSpec],
) -> None:
    with pytest.raises(SpecInvalid, match="dpo runs on one GPU"):
        admitted(method={"type": "dpo"}, peft={"type": "full"}, resources={"gpus": 2})


def test_a_worker_that_has_one_machine_says_so(make_house: Callable[..., House]) -> None:
    house = make_house()
    rows = house.add_dataset(conversations(4))
    job_id = house.submit(rows, resources=Resources(nodes=2))
    runner, _ = runner_of(house, Scripted())
    runner.run_next("default")
    error = house.job(job_id).error
    assert error is not None
    assert error.code == "nodes_unavailable"


def test_a_job_that_asks_for_nothing_is_stored_as_before() -> None:
    spec = JobSpec.model_validate({"base_model": "b", "dataset": "d", "method": {"type": "sft"}})
    assert "resources" not in spec.model_dump(mode="json")
    two = spec.model_copy(update={"resources": Resources(gpus=2)})
    assert JobSpec.model_validate(two.model_dump(mode="json")) == two
