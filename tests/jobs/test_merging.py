"""A merge before it is queued: whose adapters, of which base and kind, and whether they fit."""

from collections.abc import Callable
from typing import Any

import pytest

from engine.spec import FullPeft, LoraPeft
from jobs.errors import NotFound, SpecInvalid
from jobs.merging import AdmittedMerge, MergeRequest, admit_merge
from jobs.model import Adapter
from tests.adapter_rows import LORA, add_adapter
from tests.workers import House

MAX_RANK = 32


@pytest.fixture
def house(make_house: Callable[..., House]) -> House:
    return make_house()


def adapter(house: House, **changes: Any) -> Adapter:
    revision = house.bases.find("tiny").revision
    return add_adapter(
        house.store, house.objects, house.tenant_id, **({"base_revision": revision} | changes)
    )


def lora(house: House, r: int = 4, **changes: Any) -> Adapter:
    return adapter(house, peft=LORA | {"r": r} | changes)


def admitted(house: House, adapters: list[Adapter], how: str | None, **body: Any) -> AdmittedMerge:
    named = [{"id": one.id} for one in adapters]
    request = MergeRequest.model_validate(
        {"adapters": named, "combination_type": how, "into_base": how is None} | body
    )
    return admit_merge(house.store, house.bases, house.tenant_id, request, max_lora_rank=MAX_RANK)


def refusal(house: House, adapters: list[Adapter], how: str | None, **body: Any) -> SpecInvalid:
    with pytest.raises(SpecInvalid) as refused:
        admitted(house, adapters, how, **body)
    return refused.value


def problems(house: House, adapters: list[Adapter], how: str | None, **body: Any) -> Any:
    found = refusal(house, adapters, how, **body).problems
    return [(problem.param, problem.code) for problem in found]


def test_a_merge_has_the_base_of_its_adapters_and_the_rank_of_its_result(house: House) -> None:
    pair = [lora(house, 4), lora(house, 8, target_modules=["k_proj"])]
    made = admitted(house, pair, "cat", seed=7, name="both", metadata={"a": "b"})
    assert made.spec.base_model == made.base.name == "tiny"
    assert (made.spec.seed, made.spec.name, made.spec.metadata) == (7, "both", {"a": "b"})
    assert [one.id for one in made.spec.method.adapters] == [one.id for one in pair]
    targets = ("k_proj", "q_proj", "v_proj")
    assert made.spec.peft == LoraPeft(r=12, lora_alpha=12, target_modules=targets)
    assert admitted(house, pair, "svd").spec.peft.r == 8  # type: ignore[union-attr]  # a LoRA
    assert admitted(house, pair, "svd", svd_rank=3).spec.peft.r == 3  # type: ignore[union-attr]
    assert admitted(house, pair[:1], None).spec.peft == FullPeft()
    whole = [pair[0], lora(house, 4, target_modules="all-linear", type="qlora")]
    assert admitted(house, whole, "linear").spec.peft.target_modules == "all-linear"  # type: ignore[union-attr]


@pytest.mark.parametrize("how", ["linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"])
def test_matrices_of_several_ranks_are_refused_with_what_takes_them(house: House, how: str) -> None:
    density = {} if how == "linear" else {"density": 0.5}
    refused = refusal(house, [lora(house, 4), lora(house, 8)], how, **density)
    (problem,) = refused.problems
    assert (problem.param, problem.code) == ("combination_type", "ranks_differ")
    assert "4, 8" in problem.message
    assert (
        problem.message.endswith("cat or svd.")
        if how == "linear"
        else f"{how}_svd" in problem.message
    )
    admitted(house, [lora(house, 4), lora(house, 4)], how, **density)


def test_a_rank_that_could_not_be_served_is_refused(house: House) -> None:
    pair = [lora(house, 20), lora(house, 20)]
    assert problems(house, pair, "cat") == [("combination_type", "rank_too_high")]
    assert "svd_rank` of at most 32" in str(refusal(house, pair, "cat"))
    assert problems(house, pair, "svd", svd_rank=33) == [
        ("svd_rank", "rank_too_high"),
    ]
    high = [lora(house, 40), lora(house, 40)]
    assert problems(house, high, "linear") == [("combination_type", "rank_too_high")]
    assert problems(house, high, "svd") == [("svd_rank", "rank_too_high")]
    admitted(house, high, "svd", svd_rank=32)


def test_more_singular_values_than_a_layer_has_are_refused(house: House) -> None:
    """The base's keys have 32 outputs."""
    pair = [lora(house, 4), lora(house, 4)]
    request = MergeRequest.model_validate(
        {"adapters": [{"id": one.id} for one in pair], "combination_type": "svd", "svd_rank": 33}
    )
    with pytest.raises(SpecInvalid, match="no more than 32 singular values"):
        admit_merge(house.store, house.bases, house.tenant_id, request, max_lora_rank=64)


@pytest.mark.parametrize(
    ("kind", "peft", "code", "why"),
    [
        ("full", {"type": "full"}, "wrong_adapter_kind", "is a whole model"),
        ("prompt_tuning", {"type": "prompt_tuning"}, "wrong_adapter_kind", "virtual tokens"),
        ("prefix_tuning", {"type": "prefix_tuning"}, "wrong_adapter_kind", "virtual tokens"),
        ("reward", LORA, "wrong_adapter_kind", "is a reward model"),
        ("lora", {"type": "of another version"}, "peft_unknown", "cannot be merged"),
        ("lora", LORA | {"use_dora": True}, "dora_unsupported", "into_base"),
        ("lora", LORA | {"type": "qlora", "use_dora": True}, "dora_unsupported", "into_base"),
    ],
)
def test_what_is_no_plain_lora_is_refused_with_the_reason(
    house: House, kind: Any, peft: dict[str, Any], code: str, why: str
) -> None:
    pair = [lora(house), adapter(house, kind=kind, peft=peft)]
    refused = refusal(house, pair, "cat")
    (problem,) = refused.problems
    assert (problem.param, problem.code) == ("adapters.1.id", code)
    assert why in problem.message
    if code == "dora_unsupported":
        assert admitted(house, pair[1:], None).spec.peft == FullPeft()
    else:
        assert problems(house, pair[1:], None) == [("adapters.0.id", code)]


def test_adapters_of_several_bases_or_revisions_are_refused(house: House) -> None:
    ours, other, old = (
        lora(house),
        adapter(house, base_model="other"),
        adapter(house, base_revision="old"),
    )
    assert problems(house, [ours, other, old], "cat") == [
        ("adapters.1.id", "wrong_base_model"),
        ("adapters.2.id", "base_model_changed"),
    ]
    assert ("adapters", "base_model_not_allowed") in problems(house, [other, ours], "cat")


def test_adapters_that_read_the_same_prompt_otherwise_are_refused(house: House) -> None:
    ours = lora(house)
    other = lora(house)
    manifest = other.manifest | {"contract": {"chat_template": "another"}}
    house.store.adapters.delete(house.tenant_id, other.id)
    house.store.adapters.add(other.model_copy(update={"manifest": manifest}))
    assert problems(house, [ours, other], "cat") == [("adapters.1.id", "contract_differs")]
    assert "(chat_template)" in str(refusal(house, [ours, other], "cat"))


def test_a_foreign_adapter_is_as_unknown_as_any_other(house: House) -> None:
    theirs = add_adapter(
        house.store,
        house.objects,
        house.store.tenants.create("theirs").id,
        base_revision=house.bases.find("tiny").revision,
    )
    with pytest.raises(NotFound, match=theirs.id):
        admitted(house, [lora(house), theirs], "cat")
    with pytest.raises(NotFound):
        admitted(house, [theirs.model_copy(update={"id": "@sft"})], "linear")
