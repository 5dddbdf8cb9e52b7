"""A folder of a LoRA as PEFT saves it, read for the model that it is for."""

from collections.abc import Mapping, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from engine.infer.dora import gain_of
from engine.infer.linear import LinearLayers
from engine.infer.lora import LoraWeights
from engine.infer.lora_plan import Plan
from engine.infer.peft_folder import read_config, read_weights, refused
from engine.infer.weights_file import Index

# Options of PEFT that change what an adapter computes, and that this server does not compute.
UNSUPPORTED = (
    "lora_bias",
    "modules_to_save",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
)


def load_lora(folder: Path, layers: LinearLayers, device: torch.device) -> LoraWeights:
    """Read a PEFT LoRA folder for the model with these linear layers. Raises AdapterRefused.

    Weights are kept in float32, as PEFT does, also on a bfloat16 base; in bfloat16 where the
    layers have a kernel, which computes with nothing else.
    """
    config = read_config(folder, "LORA", unsupported=UNSUPPORTED)
    return lora_of(config, *read_weights(folder), layers, device)


def lora_of(
    config: Mapping[str, Any],
    index: Index,
    numbers: torch.Tensor,
    layers: LinearLayers,
    device: torch.device,
    *,
    beside: Set[str] = frozenset(),
) -> LoraWeights:
    """The same from what has been read. `beside`: tensors that are no part of the LoRA."""
    plan = layers.plans.find(config, index, beside)
    numbers = numbers.to(device)
    is_dora = bool(config.get("use_dora"))
    # A DoRA is computed with before it is rounded.
    rounds = layers.kernel is not None and not is_dora
    dtype = torch.bfloat16 if rounds else torch.float32
    lora = plan.pack(numbers, layers.layout, layers.packer, dtype)
    _check_finite(lora)
    return _lengthened(lora, plan, numbers, layers) if is_dora else lora


def _lengthened(
    lora: LoraWeights, plan: Plan, numbers: torch.Tensor, layers: LinearLayers
) -> LoraWeights:
    """With the gains of a DoRA, which are folded into B too."""
    gains = {}
    for name, layer in plan.layers.items():
        assert layer.magnitude is not None, "the plan is a DoRA's"
        magnitude = layer.magnitude.of(numbers)
        gains[name] = gain_of(magnitude, layers.weight_of(name), *lora.pairs[name])
    for name, (_, lora_b) in lora.pairs.items():
        lora_b.mul_(gains[name][:, None])
    packed_gains = None if lora.packed is None else layers.layout.pack_gains(gains)
    return replace(lora, gains=gains, packed_gains=packed_gains)


def _check_finite(lora: LoraWeights) -> None:
    if lora.packed is not None and lora.packed.sum().isfinite():
        return  # one look at all of it; a sum may overflow, so a bad one proves nothing
    for name, pair in lora.pairs.items():
        if not all(bool(weights.isfinite().all()) for weights in pair):
            raise refused(f"{name!r} has weights that are not finite")
