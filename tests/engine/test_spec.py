"""What a job may ask for: kinds of PEFT, and what each refuses before anything runs."""

import pytest
from pydantic import TypeAdapter, ValidationError

from engine.spec import LoraPeft, Peft

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
