"""Hyperparameters that were left open: which numbers they get, and that errors stay readable."""

import json
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from engine.auto import Facts, resolve
from engine.spec import (
    AUTO_FIELDS,
    FullPeft,
    GrpoMethod,
    KtoMethod,
    LoraPeft,
    Method,
    Peft,
    PpoMethod,
    PromptTuningPeft,
    SftMethod,
)

METHOD: TypeAdapter[Method] = TypeAdapter(Method)
GRADER: Any = {"type": "length", "name": "l", "input": "{{ sample.output_text }}", "maximum": 9}


def facts(rows: int = 1000, *, row_bytes: float = 700, hidden_size: int = 2048) -> Facts:
    return Facts(rows, row_bytes, hidden_size)


def settled(given: dict[str, Any], peft: Peft | None = None, of: Facts | None = None) -> Any:
    return resolve(METHOD.validate_python(given), peft or LoraPeft(), of or facts())


def test_auto_is_taken_for_each_of_these_fields_and_remembered() -> None:
    method = settled({"type": "sft"} | dict.fromkeys(AUTO_FIELDS, "auto"))
    assert method.auto == AUTO_FIELDS
    assert all(isinstance(getattr(method, name), int | float) for name in AUTO_FIELDS)
    again = METHOD.validate_json(json.dumps(method.model_dump(mode="json")))
    assert again == method


def test_a_method_without_auto_is_written_as_it_always_was() -> None:
    assert "auto" not in SftMethod().model_dump(mode="json")
    assert METHOD.validate_python({"type": "sft"}).auto == ()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learning_rate": "Auto"}, "Input should be a valid number"),
        ({"learning_rate": 7}, "Input should be less than or equal to 1"),
        ({"max_length": "auto"}, "Input should be a valid integer"),
        ({"auto": ["max_length"]}, "Input should be 'learning_rate', 'num_train_epochs'"),
    ],
)
def test_a_wrong_value_has_one_error_without_the_noise_of_a_union(
    given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        METHOD.validate_python({"type": "sft"} | given)
    (error,) = refused.value.errors()
    assert error["msg"].startswith(message)


def test_the_documentation_says_what_may_be_open() -> None:
    schema = SftMethod.model_json_schema()["properties"]
    assert {"type": "string", "const": "auto"} in schema["learning_rate"]["anyOf"]
    assert schema["learning_rate"]["default"] == 2e-4
    assert "anyOf" not in schema["weight_decay"]


def test_virtual_tokens_learn_faster_than_lora_and_lora_faster_than_every_weight() -> None:
    open_rate = {"type": "sft", "learning_rate": "auto"}
    rates = [settled(open_rate, peft).learning_rate for peft in (FullPeft(), LoraPeft())]
    rates.append(settled(open_rate, PromptTuningPeft()).learning_rate)
    assert rates == [4.9e-5, 4.9e-4, 0.1]


def test_wide_bases_and_preference_methods_take_smaller_steps() -> None:
    def rate(kind: str, width: int) -> float:
        given = {"type": kind, "learning_rate": "auto"}
        found: float = settled(given, of=facts(hidden_size=width)).learning_rate
        return found

    assert rate("sft", 256) > rate("sft", 2048) > rate("sft", 8192)
    assert rate("dpo", 2048) < rate("orpo", 2048) < rate("sft", 2048)


@pytest.mark.parametrize(("rows", "epochs"), [(100, 10), (1000, 3), (3000, 1), (100_000, 1)])
def test_few_rows_are_seen_more_often(rows: int, epochs: float) -> None:
    method = settled({"type": "sft", "num_train_epochs": "auto"}, of=facts(rows))
    assert method.num_train_epochs == epochs


@pytest.mark.parametrize(
    ("rows", "row_bytes", "size"), [(20, 500, 1), (60, 500, 2), (1000, 500, 16), (1000, 9000, 4)]
)
def test_a_batch_leaves_enough_steps_and_fits_long_rows(
    rows: int, row_bytes: float, size: int
) -> None:
    given = {"type": "sft", "per_device_batch_size": "auto", "max_length": 2048}
    assert settled(given, of=facts(rows, row_bytes=row_bytes)).per_device_batch_size == size


def test_a_batch_is_one_that_the_method_takes() -> None:
    kto = settled({"type": "kto", "per_device_batch_size": "auto"}, of=facts(3))
    groups = {"type": "grpo", "num_generations": 6, "grader": GRADER}
    grpo = settled(groups | {"per_device_batch_size": "auto", "gradient_accumulation_steps": 4})
    parts = {"type": "ppo", "num_mini_batches": 3, "grader": GRADER}
    ppo = settled(parts | {"per_device_batch_size": "auto"})
    assert isinstance(kto, KtoMethod)
    assert kto.per_device_batch_size == 2
    assert isinstance(grpo, GrpoMethod)
    assert (grpo.per_device_batch_size * 4) % 6 == 0
    assert isinstance(ppo, PpoMethod)
    assert ppo.per_device_batch_size == 9


def test_a_short_run_warms_up_for_longer() -> None:
    short = settled({"type": "sft", "warmup_ratio": "auto", "max_steps": 50})
    long = settled({"type": "sft", "warmup_ratio": "auto", "max_steps": 500})
    assert (short.warmup_ratio, long.warmup_ratio) == (0.1, 0.03)
