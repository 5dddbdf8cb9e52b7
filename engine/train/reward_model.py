"""A reward model: the base with a scalar head, read at the last token of an answer."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, load_peft_weights
from peft.utils import set_peft_model_state_dict
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from engine.render import Renderer
from engine.spec import Peft, QloraPeft
from engine.train.errors import TrainingFailed
from engine.train.model import compute_dtype
from engine.train.quantization import keep_unpacked, quantized
from engine.train.switch import AdapterSwitch

HEAD = "score.weight"


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


def padding_for(renderer: Renderer) -> int:
    """The token to pad a reward model's batches with; never one that ends an answer.

    transformers reads the score at the last token that is not padding. Where a base pads with its
    end-of-sequence token, that would be the token before the end, and not the one that is served.
    """
    contract, tokenizer = renderer.contract, renderer.tokenizer
    special = [i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special]
    candidates: list[int] = [
        contract.pad_token_id,
        *sorted(special),
        *range(tokenizer.get_vocab_size()),
    ]
    return next(i for i in candidates if i not in contract.stop_token_ids)


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
    config = PeftConfig.from_pretrained(str(folder)) if _is_peft(folder) else None
    if not isinstance(config, LoraConfig):
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


def _is_peft(folder: Path) -> bool:
    path = folder / "adapter_config.json"
    return path.is_file() and isinstance(json.loads(path.read_bytes()), dict)
