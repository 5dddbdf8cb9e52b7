"""A reward model's scalar head: the score of an answer, read off the hidden state at its end."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from engine.infer.lora import LoraWeights
from engine.infer.lora_folder import UNSUPPORTED, lora_of
from engine.infer.model import ServedModel, load_model
from engine.infer.peft_folder import read_config, read_weights, refused

_KEY = "base_model.model.score.weight"
_SAVED = "modules_to_save"
_NAMES = {"classifier", "score"}  # peft names both, and saves the one that is there


@dataclass(frozen=True, slots=True)
class ScoreHead:
    """weight [hidden] in float32. `pad_token_id` is the one that training knew; None: none."""

    weight: torch.Tensor
    pad_token_id: int | None

    def score(self, hidden: torch.Tensor) -> float:
        """The scalar for a hidden state [hidden] after the final norm."""
        return float(hidden.float() @ self.weight)


def scored_part(token_ids: Sequence[int], pad_token_id: int | None) -> Sequence[int]:
    """The tokens up to the one at which the score is read.

    As AutoModelForSequenceClassification pools: the last token that is not the pad token. Where
    pad is the token that ends a turn, that is the last of the answer's text.
    """
    end = len(token_ids)
    while end > 1 and token_ids[end - 1] == pad_token_id:
        end -= 1
    return token_ids[:end]


def load_headed_lora(
    folder: Path, base: ServedModel, pad_token_id: int | None
) -> tuple[LoraWeights, ScoreHead]:
    """A PEFT folder of a LoRA and the head above it, for this base. Raises AdapterRefused."""
    config = read_config(folder, "LORA", unsupported=set(UNSUPPORTED) - {_SAVED})
    saved = config.get(_SAVED)
    if not isinstance(saved, list) or "score" not in saved or not _NAMES.issuperset(saved):
        raise refused("the layer that a reward model saves beside its LoRA is `score`, and no more")
    index, numbers = read_weights(folder)
    place = index.places.get(_KEY)
    if place is None:
        raise refused(f"it has no {_KEY!r}, which scores")
    lora = lora_of(config, index, numbers, base.layers, base.device, beside={_KEY})
    return lora, _checked(place.of(numbers), base, pad_token_id)


def load_headed_model(
    name: str,
    folder: Path,
    device: torch.device,
    pad_token_id: int | None,
    *,
    max_context: int | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[ServedModel, ScoreHead]:
    """A whole model with its head, which alone is not run as a layer.

    Raises ModelUnusable and AdapterRefused.
    """
    model = load_model(
        name,
        folder,
        device,
        max_context=max_context,
        dtype=dtype,
        architecture=AutoModelForSequenceClassification,
        num_labels=1,
    )
    head = model.part("score")
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise refused("its architecture has no linear layer `score` without a bias")
    return model, _checked(head.weight.detach(), model, pad_token_id)


def _checked(weight: torch.Tensor, model: ServedModel, pad_token_id: int | None) -> ScoreHead:
    if tuple(weight.shape) != (1, model.width):
        raise refused(f"its head is {list(weight.shape)}; the model's is [1, {model.width}]")
    if not weight.isfinite().all():
        raise refused("its head has weights that are not finite")
    return ScoreHead(weight[0].to(model.device, torch.float32), pad_token_id)
