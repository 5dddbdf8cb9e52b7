"""What could not run is refused when it is posted, with every reason at once."""

from collections.abc import Callable
from typing import Any

import pytest

from engine.spec import LoraPeft, SftMethod
from jobs.admission import admit
from jobs.errors import NotFound, SpecInvalid
from jobs.model import JobSpec
from tests.workers import House, conversations


@pytest.fixture
def house(make_house: Callable[..., House]) -> House:
    return make_house()


def spec(house: House, **changed: Any) -> JobSpec:
    dataset = house.add_dataset(conversations(3))
    whole = {"base_model": "tiny", "dataset": dataset, "method": SftMethod()}
    return JobSpec.model_validate(whole | changed)


def problems(house: House, **changed: Any) -> dict[str, str]:
    with pytest.raises(SpecInvalid) as refusal:
        admit(house.store, house.bases, house.tenant_id, spec(house, **changed), max_lora_rank=64)
    return {problem.param: problem.code for problem in refusal.value.problems}


def test_a_job_that_can_run_is_admitted_with_its_base(house: House) -> None:
    peft = LoraPeft(target_modules=("q_proj", "self_attn.v_proj"))
    wanted = spec(house, peft=peft)
    admitted = admit(house.store, house.bases, house.tenant_id, wanted, max_lora_rank=64)
    assert (admitted.base, admitted.spec) == (house.bases.find("tiny"), wanted)


def test_every_reason_is_told_at_once(house: House) -> None:
    found = problems(
        house,
        peft=LoraPeft(r=65, target_modules=("q_proj", "c_attn")),
        method=SftMethod(max_length=100_000),
    )
    assert found == {
        "peft.r": "rank_too_high",
        "peft.target_modules": "module_not_in_base",
        "method.max_length": "max_length_too_long",
    }


def test_a_base_that_is_not_on_the_list_is_refused(house: House) -> None:
    assert problems(house, base_model="../tiny") == {"base_model": "base_model_not_allowed"}


def test_a_dataset_that_the_tenant_does_not_have_is_not_found(house: House) -> None:
    with pytest.raises(NotFound):
        admit(
            house.store,
            house.bases,
            house.store.tenants.create("other").id,
            spec(house),
            max_lora_rank=64,
        )
