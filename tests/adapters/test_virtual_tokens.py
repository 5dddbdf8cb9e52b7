"""Prompt and prefix tuning as PEFT writes them are accepted, for the base they were made for."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from adapters.errors import AdapterError, AdapterInvalid
from adapters.geometry import Attention, Geometry, base_geometry, geometry_of
from adapters.kinds import Base, Checked, validate_adapter
from adapters.tensors import base_shapes
from tests.adapters.test_peft import gpt2, llama, logits, save_base

CONFIGS = {"prompt_tuning": PromptTuningConfig, "prefix_tuning": PrefixTuningConfig}
NUMBERS = {("prompt_tuning", "llama"): 32, ("prefix_tuning", "llama"): 2 * 2 * 16,
           ("prompt_tuning", "gpt2"): 32, ("prefix_tuning", "gpt2"): 2 * 2 * 32}  # fmt: skip
MODELS = {"llama": llama, "gpt2": gpt2}


def save(model: PreTrainedModel, folder: Path, kind: str, **options: Any) -> torch.Tensor:
    config = CONFIGS[kind](task_type="CAUSAL_LM", num_virtual_tokens=5, **options)
    tuned = get_peft_model(model, config)
    tuned.save_pretrained(folder)
    return logits(tuned)


def check(folder: Path, base: Path) -> Checked:
    held_against = Base(base_shapes(base), lambda: base_geometry(base))
    return validate_adapter(folder, held_against, max_rank=8)


@pytest.mark.parametrize("architecture", MODELS)
@pytest.mark.parametrize("kind", CONFIGS)
def test_what_peft_saves_is_accepted_and_counted(
    tmp_path: Path, kind: str, architecture: str
) -> None:
    base = save_base(MODELS[architecture](), tmp_path / "base")
    expected = save(MODELS[architecture](), tmp_path / "tuned", kind)
    checked = check(tmp_path / "tuned", base)
    assert checked.kind == kind
    assert checked.summary.parameters == 5 * NUMBERS[kind, architecture]
    plain = AutoModelForCausalLM.from_pretrained(base)
    assert torch.equal(logits(PeftModel.from_pretrained(plain, tmp_path / "tuned")), expected)


def test_a_projected_prefix_is_saved_as_what_it_projects_to(tmp_path: Path) -> None:
    base = save_base(llama(), tmp_path / "base")
    expected = save(llama(), tmp_path / "tuned", "prefix_tuning", prefix_projection=True)
    assert check(tmp_path / "tuned", base).kind == "prefix_tuning"
    plain = AutoModelForCausalLM.from_pretrained(base)
    tuned = PeftModel.from_pretrained(plain, tmp_path / "tuned")
    assert torch.allclose(logits(tuned), expected, atol=1e-6)


@pytest.mark.parametrize("kind", CONFIGS)
def test_those_of_another_base_are_refused(tmp_path: Path, kind: str) -> None:
    base = save_base(llama(), tmp_path / "base")
    save(llama(hidden_size=64), tmp_path / "tuned", kind)
    with pytest.raises(AdapterInvalid) as caught:
        check(tmp_path / "tuned", base)
    assert caught.value.code == "wrong_base"


def test_a_prefix_for_layers_of_several_shapes_is_refused(tmp_path: Path) -> None:
    base = save_base(llama(), tmp_path / "base")
    save(llama(), tmp_path / "tuned", "prefix_tuning")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"num_kv_shared_layers": 1}))
    with pytest.raises(AdapterInvalid) as caught:
        check(tmp_path / "tuned", base)
    assert caught.value.code == "prefix_unsupported_by_base"


@pytest.mark.parametrize(
    ("config", "geometry"),
    [
        (
            {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024},
            Geometry(768, Attention(12, 12, 64), 1024),
        ),
        (
            {"text_config": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                             "num_key_value_heads": 1, "head_dim": 32}},
            Geometry(64, Attention(2, 1, 32), 2048),
        ),
        (
            {"hidden_size": 64, "num_attention_heads": 4, "kv_lora_rank": 8},
            Geometry(64, None, 2048),
        ),
    ],
)  # fmt: skip
def test_the_sizes_are_where_each_family_has_them(
    config: dict[str, Any], geometry: Geometry
) -> None:
    assert geometry_of(config) == geometry


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"hidden_size": "wide"}'])
def test_a_base_that_does_not_say_is_told_of(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(AdapterError, match="cannot be checked against it"):
        base_geometry(tmp_path)
