"""A reward model's files: a LoRA or a whole model, with the scalar head that scores."""

import json
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import AdapterInvalid
from adapters.validation import validate_full, validate_lora
from tests.adapters.crafting import BASE, CONFIG, HIDDEN, RANK, Tensors, lora, numbers, safetensors

HEAD = "base_model.model.score.weight"
SCORED: dict[str, Any] = {"task_type": "SEQ_CLS", "modules_to_save": ["classifier", "score"]}
GOOD = numbers((1, HIDDEN))


def write(folder: Path, tensors: Tensors, **config: Any) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | SCORED | config))
    (folder / "adapter_model.safetensors").write_bytes(safetensors(tensors))
    return folder


def verdict(folder: Path, *, scored: bool = True) -> str:
    with pytest.raises(AdapterInvalid) as refusal:
        validate_lora(folder, BASE, max_rank=8, scored=scored)
    return refusal.value.code


def test_a_lora_with_a_head_is_a_reward_model_and_nothing_else(tmp_path: Path) -> None:
    folder = write(tmp_path / "reward", lora() | {HEAD: GOOD})
    assert validate_lora(folder, BASE, max_rank=8, scored=True).r == RANK
    assert verdict(folder, scored=False) == "task_type_unsupported"


@pytest.mark.parametrize(
    ("head", "config", "code"),
    [
        ({}, {}, "reward_head_missing"),
        ({HEAD: GOOD}, {"task_type": "CAUSAL_LM"}, "reward_head_missing"),
        ({HEAD: GOOD}, {"modules_to_save": None}, "reward_head_missing"),
        ({HEAD: GOOD}, {"modules_to_save": ["score", "lm_head"]}, "modules_to_save_unsupported"),
        ({HEAD: numbers((2, HIDDEN))}, {}, "wrong_shape"),
        ({HEAD: numbers((1, HIDDEN + 1))}, {}, "wrong_shape"),
        ({HEAD: numbers((HIDDEN,))}, {}, "wrong_shape"),
        ({HEAD: GOOD, "base_model.model.other.weight": GOOD}, {}, "odd_tensor_name"),
        ({HEAD: ("F32", [1, HIDDEN], b"\x00\x00\xc0\x7f" * HIDDEN)}, {}, "nan_weights"),
    ],
)
def test_a_head_that_could_not_score_is_refused(
    tmp_path: Path, head: Tensors, config: dict[str, Any], code: str
) -> None:
    assert verdict(write(tmp_path / "reward", lora() | head, **config)) == code


def test_a_whole_reward_model_has_its_head_in_place_of_the_one_for_tokens(tmp_path: Path) -> None:
    base = BASE | {"lm_head.weight": BASE["model.embed_tokens.weight"]}
    weights = {name: numbers(shape) for name, shape in BASE.items()}
    (tmp_path / "config.json").write_text("{}")
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors(weights | {"score.weight": GOOD}))
    validate_full(tmp_path, base, scored=True)
    with pytest.raises(AdapterInvalid, match="not a fine-tuned version"):
        validate_full(tmp_path, base)
    path.write_bytes(safetensors(weights))
    with pytest.raises(AdapterInvalid, match=r"no 'score\.weight'"):
        validate_full(tmp_path, base, scored=True)
