"""A reward model: the base with a scalar head, read at the last token of an answer."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, get_peft_model, load_peft_weights
from peft.utils import set_peft_model_state_dict
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from engine.plan import TrainPlan
from engine.spec import FullPeft, LowRank, Peft, QloraPeft
from engine.train.errors import TrainingFailed
from engine.train.model import add_peft, compute_dtype
from engine.train.quantization import keep_float32, keep_unpacked, quantized
from engine.train.switch import AdapterSwitch

HEAD = "score.weight"


def begin(plan: TrainPlan, pad_token_id: int) -> Any:
    """The model that a reward job trains; seed torch before.

    Where the plan starts from an adapter, its weights are those of the adapter (Ouyang et al. 2022,
    https://arxiv.org/abs/2203.02155, section 3.5). The head is the adapter's too where that is a
    reward model, and else a new one. Raises TrainingFailed.
    """
    if plan.init_from is None:
        base = load_headed_base(plan.base_path, pad_token_id, plan.peft)
        return add_peft(base, plan.peft, task_type="SEQ_CLS")
    if isinstance(plan.peft, FullPeft):
        return load_headed_base(plan.init_from, pad_token_id)
    assert isinstance(plan.peft, LowRank)
    base = load_headed_base(plan.base_path, pad_token_id, plan.peft)
    return _continued(base, plan.init_from, plan.peft)


def _continued(base: PreTrainedModel, folder: Path, peft: LowRank) -> Any:
    """The headed base with a LoRA that goes on, and with its head where it has one."""
    config = _lora_config(folder)
    if config is None:
        raise TrainingFailed("init_unusable", "The adapter in `init` is not a LoRA.")
    config.base_model_name_or_path = None  # the client's name of the base
    config.task_type, config.modules_to_save, config.inference_mode = "SEQ_CLS", None, False
    config.lora_dropout, config.init_lora_weights = peft.lora_dropout, True
    own = {f"base_model.model.{HEAD}": base.get_parameter(HEAD).detach().clone()}
    model = get_peft_model(base, config)
    found = set_peft_model_state_dict(model, own | load_peft_weights(str(folder), device="cpu"))
    missing = [key for key in found.missing_keys if ".lora_" in key]
    if wrong := [*found.unexpected_keys, *missing]:
        text = f"The adapter in `init` does not fit the base: {', '.join(wrong[:3])}."
        raise TrainingFailed("init_unusable", text)
    if isinstance(peft, QloraPeft):
        keep_float32(model)
    return model


def load_headed_base(path: Path, pad_token_id: int, peft: Peft | None = None) -> PreTrainedModel:
    """The base with a new linear head of one output, drawn at random: seed torch before.

    For QLoRA its linear layers, but not the head, are in 4 bits. Raises TrainingFailed for an
    architecture that has no such form.
    """
    dtype = compute_dtype()
    options = quantized(peft, dtype) if isinstance(peft, QloraPeft) else {}
    if options:
        options["quantization_config"].llm_int8_skip_modules = ["score"]
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            path,
            num_labels=1,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            **options,
        )
    except (OSError, ValueError, KeyError) as error:
        raise TrainingFailed(
            "base_model_unusable", f"The base model cannot carry a reward head: {error}"
        ) from error
    if not isinstance(getattr(model, "score", None), nn.Linear):
        text = "The base model's architecture has no scalar head that could be served."
        raise TrainingFailed("base_model_unusable", text)
    model.config.get_text_config().pad_token_id = pad_token_id
    keep_unpacked(model)
    return model


@torch.no_grad()
def scores(model: Any, sequences: Sequence[Sequence[int]]) -> list[float]:
    """The reward of each sequence of token ids (prompt and answer), one at a time."""
    model.eval()
    device = next(model.parameters()).device
    rewards = []
    for ids in sequences:
        row = torch.tensor([list(ids)], device=device)
        output = model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False)
        rewards.append(output.logits.float().item())
    return rewards


def add_reward_adapter(switch: AdapterSwitch, folder: Path, name: str) -> Tensor:
    """Put a reward adapter's LoRA on a causal model beside its others; its head, [1, hidden].

    Raises TrainingFailed where it is not a LoRA, which alone can share the base's weights.
    """
    config = _lora_config(folder)
    if config is None:
        text = "The reward model is not a LoRA, so it cannot share the base with the policy."
        raise TrainingFailed("reward_model_unusable", text)
    config.base_model_name_or_path = switch.model.active_peft_config.base_model_name_or_path
    config.task_type, config.modules_to_save, config.inference_mode = "CAUSAL_LM", None, True
    weights = load_peft_weights(str(folder), device="cpu")
    heads = [key for key in weights if key.endswith(HEAD)]
    if len(heads) != 1:
        raise TrainingFailed("reward_model_unusable", "The reward model has no scalar head.")
    head: Tensor = weights.pop(heads[0])
    switch.add(name, config, trained=False)
    found = set_peft_model_state_dict(switch.model, weights, adapter_name=name)
    if found.unexpected_keys:
        text = f"The reward model does not fit the base: {', '.join(found.unexpected_keys[:3])}."
        raise TrainingFailed("reward_model_unusable", text)
    return head.float()


def _lora_config(folder: Path) -> LoraConfig | None:
    path = folder / "adapter_config.json"
    if not path.is_file() or not isinstance(json.loads(path.read_bytes()), dict):
        return None
    config = PeftConfig.from_pretrained(str(folder))
    return config if isinstance(config, LoraConfig) else None
