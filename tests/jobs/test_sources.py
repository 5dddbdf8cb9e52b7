"""A job that starts from an adapter: it must be ours, of the same base, and of the right kind."""

from collections.abc import Callable
from typing import Any

import pytest

from engine.spec import (
    ROWS_OF_METHOD,
    FullPeft,
    LoraPeft,
    PrefixTuningPeft,
    RewardMethod,
    SftMethod,
)
from jobs.admission import admit
from jobs.errors import NotFound, SpecInvalid
from jobs.model import Adapter, JobSpec
from tests.adapter_rows import add_adapter
from tests.workers import House, conversations


class Scored(SftMethod):
    """A method with a reward model: `sft` in all else."""

    reward_model: str | None = None


@pytest.fixture
def house(make_house: Callable[..., House]) -> House:
    return make_house()


def adapter(house: House, **changes: Any) -> Adapter:
    revision = house.bases.find("tiny").revision
    return add_adapter(
        house.store, house.objects, house.tenant_id, **({"base_revision": revision} | changes)
    )


def admitted(house: House, **changed: Any) -> JobSpec:
    dataset = house.add_dataset(conversations(3))
    whole = {"base_model": "tiny", "dataset": dataset, "method": SftMethod()} | changed
    spec = JobSpec.model_validate(whole)
    return admit(house.store, house.bases, house.tenant_id, spec, max_lora_rank=64).spec


def problems(house: House, **changed: Any) -> list[tuple[str, str]]:
    with pytest.raises(SpecInvalid) as refusal:
        admitted(house, **changed)
    return [(problem.param, problem.code) for problem in refusal.value.problems]


def test_what_is_left_out_of_peft_is_the_adapters(house: House) -> None:
    ours = adapter(house)
    whole = LoraPeft(r=4, lora_alpha=8.0, target_modules=("q_proj", "v_proj"))
    assert admitted(house, init=ours.id).peft == whole
    part = {"type": "lora", "lora_dropout": 0.1, "target_modules": ["v_proj", "q_proj"]}
    assert admitted(house, init=ours.id, peft=part).peft == whole.model_copy(
        update={"lora_dropout": 0.1}
    )


def test_a_full_adapter_goes_on_as_one(house: House) -> None:
    ours = adapter(house, kind="full", peft={"type": "full"})
    assert admitted(house, init=ours.id).peft == FullPeft()
    assert problems(house, init=ours.id, peft={"type": "lora", "r": 4}) == [
        ("peft.type", "peft_differs")
    ]


def test_what_goes_on_of_a_projected_prefix_is_the_prefix(house: House) -> None:
    peft = {"type": "prefix_tuning", "num_virtual_tokens": 4, "prefix_projection": True}
    ours = adapter(house, kind="prefix_tuning", peft=peft)
    method = SftMethod(max_length=64)
    plain = PrefixTuningPeft(num_virtual_tokens=4)
    assert admitted(house, init=ours.id, method=method).peft == plain
    assert problems(house, init=ours.id, method=method, peft=peft) == [
        ("peft.prefix_projection", "peft_differs")
    ]


def test_another_peft_than_the_adapters_is_refused_field_by_field(house: House) -> None:
    ours = adapter(house)
    peft = {"type": "lora", "r": 8, "lora_alpha": 8, "target_modules": "all-linear"}
    with pytest.raises(SpecInvalid, match=r"has `peft\.r` 4, not 8") as refusal:
        admitted(house, init=ours.id, peft=peft)
    assert {problem.param for problem in refusal.value.problems} == {
        "peft.r",
        "peft.target_modules",
    }


def test_an_adapter_of_another_base_or_revision_is_refused(house: House) -> None:
    other, old = adapter(house, base_model="other"), adapter(house, base_revision="old")
    assert problems(house, init=other.id) == [("init", "wrong_base_model")]
    assert problems(house, init=old.id) == [("init", "base_model_changed")]


def test_a_policy_does_not_go_on_with_a_reward_model_and_is_not_scored_by_a_policy(
    house: House,
) -> None:
    policy, reward = adapter(house), adapter(house, kind="reward")
    assert problems(house, init=reward.id, method=Scored(reward_model=policy.id)) == [
        ("method.reward_model", "wrong_adapter_kind"),
        ("init", "wrong_adapter_kind"),
    ]
    spec = admitted(house, init=policy.id, method=Scored(reward_model=reward.id))
    assert spec.init == policy.id


def test_an_adapter_that_no_job_could_have_made_is_refused(house: House) -> None:
    ours = adapter(house, peft={"type": "of another version"})
    assert problems(house, init=ours.id) == [("init", "peft_unknown")]


def test_a_reward_model_goes_on_with_a_policy_or_a_reward_model(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ROWS_OF_METHOD, "reward", "conversation")
    low = LoraPeft(r=4, lora_alpha=8.0, target_modules=("q_proj", "v_proj"))
    for ours in (adapter(house), adapter(house, kind="reward")):
        spec = admitted(house, init=ours.id, method=RewardMethod())
        assert (spec.peft, spec.init) == (low, ours.id)
        wider = {"type": "lora", "r": 8}
        assert problems(house, init=ours.id, method=RewardMethod(), peft=wider) == [
            ("peft.r", "peft_differs")
        ]
    for kind in ("full", "reward"):
        whole = adapter(house, kind=kind, peft={"type": "full"})
        assert admitted(house, init=whole.id, method=RewardMethod()).peft == FullPeft()
    other = adapter(house, base_model="other")
    assert problems(house, init=other.id, method=RewardMethod()) == [("init", "wrong_base_model")]


@pytest.mark.parametrize("kind", ["prompt_tuning", "prefix_tuning"])
def test_a_reward_model_does_not_go_on_with_virtual_tokens(
    house: House, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setitem(ROWS_OF_METHOD, "reward", "conversation")
    ours = adapter(house, kind=kind, peft={"type": kind, "num_virtual_tokens": 4})
    with pytest.raises(SpecInvalid, match="a scalar head reads the base's own last layer") as no:
        admitted(house, init=ours.id, method=RewardMethod())
    (problem,) = no.value.problems
    assert (problem.param, problem.code) == ("init", "wrong_adapter_kind")


def test_a_reward_model_that_cannot_share_the_base_is_refused(house: House) -> None:
    whole = adapter(house, kind="reward", peft={"type": "full"})
    assert problems(house, method=Scored(reward_model=whole.id)) == [
        ("method.reward_model", "reward_model_unusable")
    ]


@pytest.mark.parametrize("id", ["ad_" + "0" * 24, "x", "ad_\x00", "@sft"])
def test_an_unknown_adapter_is_not_found(house: House, id: str) -> None:
    with pytest.raises(NotFound):
        admitted(house, init=id)
    with pytest.raises(NotFound):
        admitted(house, method=Scored(reward_model=id))


def test_a_foreign_adapter_is_not_found(house: House) -> None:
    theirs = add_adapter(
        house.store,
        house.objects,
        house.store.tenants.create("theirs").id,
        base_revision=house.bases.find("tiny").revision,
    )
    with pytest.raises(NotFound):
        admitted(house, init=theirs.id)
