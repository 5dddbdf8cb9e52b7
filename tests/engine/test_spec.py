"""What a job may ask for: kinds of PEFT, and what each refuses before anything runs."""

from typing import get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from adapters import manifest, virtual_tokens
from engine.spec import (
    KIND_OF_PEFT,
    MAX_VIRTUAL_TOKENS,
    PEFT_OF_KIND,
    AdapterKind,
    LoraPeft,
    Peft,
)

PEFT: TypeAdapter[Peft] = TypeAdapter(Peft)


@pytest.mark.parametrize("start", [True, "gaussian", "orthogonal"])
def test_lora_may_begin_in_any_way_that_leaves_the_base_alone(start: object) -> None:
    peft = PEFT.validate_python({"type": "lora", "init_lora_weights": start})
    assert isinstance(peft, LoraPeft)
    assert peft.init_lora_weights == start


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "OLoRA", "loftq", "eva", "lora_ga"])
def test_a_start_that_changes_the_base_is_refused_with_what_to_use(start: str) -> None:
    with pytest.raises(ValidationError, match='use true, "gaussian" or "orthogonal"'):
        PEFT.validate_python({"type": "lora", "init_lora_weights": start})


@pytest.mark.parametrize("start", [False, None, "he"])
def test_any_other_start_is_unknown(start: object) -> None:
    with pytest.raises(ValidationError):
        PEFT.validate_python({"type": "lora", "init_lora_weights": start})


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt_tuning_init": "text"},
        {"prompt_tuning_init_text": "Answer briefly."},
        {"prompt_tuning_init": "text", "prompt_tuning_init_text": ""},
        {"num_virtual_tokens": 0},
        {"num_virtual_tokens": 1025},
        {"prefix_projection": True},
    ],
)
def test_prompt_tuning_that_says_too_little_or_too_much_is_refused(
    changes: dict[str, object],
) -> None:
    with pytest.raises(ValidationError):
        PEFT.validate_python({"type": "prompt_tuning", **changes})


def test_a_prefix_has_a_network_of_a_size_only_where_it_is_projected() -> None:
    size = {"type": "prefix_tuning", "encoder_hidden_size": 64}
    projected = PEFT.validate_python(size | {"prefix_projection": True})
    assert PEFT.validate_json(projected.model_dump_json()) == projected
    plain = PEFT.validate_python({"type": "prefix_tuning"})
    assert PEFT.validate_json(plain.model_dump_json()) == plain
    with pytest.raises(ValidationError, match="prefix_projection alone"):
        PEFT.validate_python(size)


def test_every_kind_of_peft_has_a_kind_of_result() -> None:
    types = {member.model_fields["type"].default for member in get_args(get_args(Peft)[0])}
    assert types == KIND_OF_PEFT.keys()
    kinds = set(get_args(AdapterKind)) - {"reward"}  # which comes of a method, not of a PEFT kind
    assert set(KIND_OF_PEFT.values()) == PEFT_OF_KIND.keys() == kinds
    assert set(get_args(manifest.AdapterKind)) == set(get_args(AdapterKind))
    assert virtual_tokens.MAX_VIRTUAL_TOKENS == MAX_VIRTUAL_TOKENS
