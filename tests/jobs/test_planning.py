"""A pipeline is checked whole: every problem with its field, and nothing of it starts."""

from collections.abc import Callable
from typing import Any

import pytest

from engine.frozen import Spec
from engine.spec import ROWS_OF_METHOD, LoraPeft, RewardMethod, SftMethod
from jobs.errors import SpecInvalid
from jobs.model import JobSpec
from jobs.planning import plan
from jobs.stages import PipelineSpec, PlannedStage
from tests.adapter_rows import add_adapter
from tests.jobs.test_sources import Scored
from tests.workers import House, conversations


@pytest.fixture
def house(make_house: Callable[..., House]) -> House:
    return make_house()


@pytest.fixture
def stage(house: House, monkeypatch: pytest.MonkeyPatch) -> Callable[..., JobSpec]:
    """A stage that could run; what is given is taken unread where no method of today fits."""
    monkeypatch.setitem(ROWS_OF_METHOD, "reward", "conversation")
    dataset = house.add_dataset(conversations(3))

    def make(method: Spec | None = None, **changed: Any) -> JobSpec:
        whole = {"base_model": "tiny", "dataset": dataset, "method": SftMethod()} | changed
        spec = JobSpec.model_validate(whole)
        return spec.model_copy(update={"method": method}) if method else spec

    return make


def planned(house: House, **stages: JobSpec) -> tuple[PlannedStage, ...]:
    spec = PipelineSpec.model_construct(stages=stages, name=None, metadata={})
    return plan(house.store, house.bases, house.tenant_id, spec, max_lora_rank=64)


def problems(house: House, **stages: JobSpec) -> list[tuple[str, str]]:
    with pytest.raises(SpecInvalid) as refusal:
        planned(house, **stages)
    return [(problem.param, problem.code) for problem in refusal.value.problems]


def test_stages_take_what_they_leave_out_from_those_they_go_on_with(
    house: House, stage: Callable[..., JobSpec]
) -> None:
    small = LoraPeft(r=2, target_modules=("q_proj",))
    found = planned(
        house,
        ppo=stage(Scored(reward_model="@rm"), init="@dpo"),
        dpo=stage(init="@sft"),
        rm=stage(RewardMethod(), init="@sft"),
        again=stage(RewardMethod(), init="@rm"),
        sft=stage(peft=small),
    )
    assert [(each.name, each.spec.peft) for each in found] == [
        ("ppo", small),
        ("dpo", small),
        ("rm", small),
        ("again", small),
        ("sft", small),
    ]
    assert {each.base_revision for each in found} == {house.bases.find("tiny").revision}


def test_references_that_lead_nowhere_are_told_with_their_fields(
    house: House, stage: Callable[..., JobSpec]
) -> None:
    found = problems(
        house,
        sft=stage(init="@sft"),
        ppo=stage(Scored(reward_model="@reward"), init="@stf"),
    )
    assert found == [
        ("stages.sft.init", "self_reference"),
        ("stages.ppo.init", "unknown_stage"),
        ("stages.ppo.method.reward_model", "unknown_stage"),
    ]


def test_every_circle_is_told_once(house: House, stage: Callable[..., JobSpec]) -> None:
    with pytest.raises(SpecInvalid) as refusal:
        planned(
            house,
            a=stage(init="@b"),
            b=stage(init="@c"),
            c=stage(init="@a"),
            behind=stage(init="@a"),
            x=stage(init="@y"),
            y=stage(init="@x"),
        )
    circles = refusal.value.problems
    assert [problem.code for problem in circles] == ["cycle", "cycle"]
    assert {problem.param.split(".")[2] for problem in circles} == {"init"}
    told = {problem.message.split(": ")[1].split(";")[0] for problem in circles}
    assert {frozenset(circle.split(" -> ")) for circle in told} == {
        frozenset("abc"),
        frozenset("xy"),
    }


def test_results_of_the_wrong_kind_or_base_are_refused_before_they_exist(
    house: House, stage: Callable[..., JobSpec]
) -> None:
    other = add_adapter(
        house.store, house.objects, house.tenant_id, base_model="b", base_revision="r"
    )
    found = problems(
        house,
        sft=stage(),
        rm=stage(RewardMethod()),
        scored=stage(Scored(reward_model="@sft"), init="@rm"),
        wide=stage(init="@sft", peft={"type": "lora", "r": 3}),
        elsewhere=stage(init=other.id, peft={"type": "lora", "r": 4}),
    )
    assert sorted(found) == [
        ("stages.elsewhere.init", "wrong_base_model"),
        ("stages.scored.init", "wrong_adapter_kind"),
        ("stages.scored.method.reward_model", "wrong_adapter_kind"),
        ("stages.wide.peft.r", "peft_differs"),
    ]


def test_each_stage_is_checked_as_a_job_and_all_of_it_is_told(
    house: House, stage: Callable[..., JobSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ROWS_OF_METHOD, "reward", "preference")
    found = problems(
        house,
        sft=stage(base_model="gpt-9", dataset="ds_" + "0" * 24),
        rm=stage(RewardMethod()),
        lost=stage(init="ad_" + "0" * 24),
        last=stage(dataset="\x00", peft={"type": "lora", "r": 65}, init="@sft"),
    )
    assert sorted(found) == [
        ("stages.last.dataset", "invalid_request"),
        ("stages.last.dataset", "not_found"),
        ("stages.last.peft.r", "rank_too_high"),
        ("stages.lost.init", "not_found"),
        ("stages.rm.dataset", "wrong_row_type"),
        ("stages.sft.base_model", "base_model_not_allowed"),
        ("stages.sft.dataset", "not_found"),
    ]
