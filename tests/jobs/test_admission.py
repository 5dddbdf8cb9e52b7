"""What could not run is refused when it is posted, with every reason at once."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.spec import LoraPeft, PrefixTuningPeft, PromptTuningPeft, QloraPeft, SftMethod
from jobs import settings
from jobs.admission import admit
from jobs.errors import NotFound, SpecInvalid
from jobs.model import JobSpec
from tests.workers import House, conversations

Virtual = PromptTuningPeft | PrefixTuningPeft


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


def test_evaluations_need_rows_to_look_at(house: House) -> None:
    method = SftMethod(eval_steps=1, early_stopping_patience=1, max_length=64)
    found = problems(house, method=method)
    assert found == dict.fromkeys(
        ("method.eval_steps", "method.early_stopping_patience"), "nothing_to_look_at"
    )
    looked_at = house.add_dataset(conversations(4))
    wanted = spec(house, method=method, validation=looked_at)
    admit(house.store, house.bases, house.tenant_id, wanted, max_lora_rank=64)


def test_an_orthogonal_start_takes_an_even_rank(house: House) -> None:
    peft = LoraPeft(r=7, init_lora_weights="orthogonal")
    assert problems(house, peft=peft) == {"peft.r": "rank_odd"}


@pytest.mark.parametrize("kind", [PromptTuningPeft, PrefixTuningPeft])
def test_virtual_tokens_and_rows_share_the_context(house: House, kind: type[Virtual]) -> None:
    method = SftMethod(max_length=500)
    found = problems(house, peft=kind(num_virtual_tokens=13), method=method)
    assert found == {"peft.num_virtual_tokens": "too_many_virtual_tokens"}
    fits = spec(house, peft=kind(num_virtual_tokens=12), method=method)
    admit(house.store, house.bases, house.tenant_id, fits, max_lora_rank=64)


def test_a_prefix_and_gradient_checkpointing_exclude_each_other(house: House) -> None:
    method = SftMethod(max_length=64, gradient_checkpointing=True)
    found = problems(house, peft=PrefixTuningPeft(), method=method)
    assert found == {"method.gradient_checkpointing": "gradient_checkpointing_unsupported"}
    fits = spec(house, peft=PromptTuningPeft(), method=method)
    admit(house.store, house.bases, house.tenant_id, fits, max_lora_rank=64)


def test_a_base_with_layers_of_several_shapes_takes_no_prefix(
    make_house: Callable[..., House], tiny_base: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "uneven")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"num_kv_shared_layers": 1}))
    house = make_house(base_models={"tiny": str(base)})
    method = SftMethod(max_length=64)
    found = problems(house, peft=PrefixTuningPeft(), method=method)
    assert found == {"peft.type": "prefix_unsupported_by_base"}


def test_a_quantized_base_needs_workers_that_can(house: House) -> None:
    assert problems(house, peft=QloraPeft()) == {"peft.type": "quantization_unavailable"}
    job = spec(house, peft=QloraPeft())
    admit(house.store, house.bases, house.tenant_id, job, max_lora_rank=64, qlora=True)


def test_lora_on_a_quantized_base_has_the_limits_of_lora(house: House) -> None:
    found = problems(house, peft=QloraPeft(r=65, target_modules=("c_attn",)))
    assert found == {
        "peft.r": "rank_too_high",
        "peft.target_modules": "module_not_in_base",
        "peft.type": "quantization_unavailable",
    }


@pytest.mark.parametrize(
    ("said", "installed", "taken"),
    [
        (None, True, True),
        (None, False, False),
        (True, False, True),
        (False, True, False),
    ],
)
def test_the_operator_says_whether_workers_can_or_this_machine_is_asked(
    monkeypatch: pytest.MonkeyPatch, said: bool | None, installed: bool, taken: bool
) -> None:
    found = (lambda name: name) if installed else (lambda name: None)
    monkeypatch.setattr(settings, "find_spec", found)
    assert settings.Settings(qlora=said).can_quantize is taken


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


def test_what_was_left_open_is_settled_and_validated_numbers_reach_the_plan(house: House) -> None:
    method = {"type": "sft", "learning_rate": "auto", "num_train_epochs": "auto"}
    wanted = spec(house, method=method)
    admitted = admit(house.store, house.bases, house.tenant_id, wanted, max_lora_rank=64)
    found = admitted.spec.method
    assert found.auto == ("learning_rate", "num_train_epochs")
    assert (found.learning_rate, found.num_train_epochs) == (2.8e-3, 10.0)
    assert found.model_dump(exclude={"auto"}) == SftMethod(
        learning_rate=2.8e-3, num_train_epochs=10.0
    ).model_dump(exclude={"auto"})


def test_nothing_is_guessed_for_a_base_that_does_not_say_its_sizes(
    house: House, tmp_path: Path
) -> None:
    bare = shutil.copytree(house.bases.find("tiny").path, tmp_path / "bare")
    config = json.loads((bare / "config.json").read_text())
    del config["hidden_size"]
    (bare / "config.json").write_text(json.dumps(config))
    house.bases._allowed["bare"] = str(bare)
    found = problems(house, base_model="bare", method={"type": "sft", "warmup_ratio": "auto"})
    assert found == {"method.warmup_ratio": "auto_unavailable"}
