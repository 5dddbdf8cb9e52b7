"""A folder of a LoRA as PEFT saves it, read for the model that it is for."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from engine.infer.dora import gain_of
from engine.infer.linear import LinearLayers
from engine.infer.lora import LoraWeights, packed
from engine.infer.peft_folder import CONFIG_NAME, read_config, read_tensors, refused

_KEY = re.compile(
    r"base_model\.model\.(?P<module>.+)\.lora_(?P<part>[AB]\.weight|magnitude_vector)"
)
_PARTS = {"A", "B"}
_DORA_PARTS = {"A", "B", "magnitude_vector"}
# PEFT reads the keys of alpha_pattern as regular expressions, which a stranger's file must not be.
_PLAIN_NAME = re.compile(r"[\w.]+")
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
    return lora_of(config, read_tensors(folder), layers, device)


def lora_of(
    config: Mapping[str, Any],
    tensors: Iterable[tuple[str, torch.Tensor]],
    layers: LinearLayers,
    device: torch.device,
) -> LoraWeights:
    """The same from a configuration and tensors by name that have been read."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors:
        match = _KEY.fullmatch(key)
        if match is None:
            raise refused(f"tensor {key!r} is no part of a linear layer's LoRA")
        if match["module"] not in layers.shapes:
            raise refused(f"{match['module']!r} is not a linear layer of the base model")
        part = match["part"].removesuffix(".weight")
        found.setdefault(match["module"], {})[part] = tensor.to(device)
    if not found:
        raise refused("it has no weights")
    scalings = {
        name: _scaling(name, _checked_rank(name, parts, layers.shapes[name], config), config)
        for name, parts in found.items()
    }
    pairs = {name: (parts["A"], parts["B"]) for name, parts in found.items()}
    # A DoRA is computed with before it is rounded.
    kernel = None if config.get("use_dora") else layers.kernel
    lora = packed(pairs, layers.layout, scalings, kernel)
    _check_finite(lora)
    if not config.get("use_dora"):
        return lora
    gains = {
        name: gain_of(parts["magnitude_vector"], layers.weight_of(name), *lora.pairs[name])
        for name, parts in found.items()
    }
    for name, (_, lora_b) in lora.pairs.items():
        lora_b.mul_(gains[name][:, None])
    packed_gains = None if lora.packed is None else layers.layout.pack_gains(gains)
    return replace(lora, gains=gains, packed_gains=packed_gains)


def _checked_rank(
    name: str,
    parts: Mapping[str, torch.Tensor],
    shape: tuple[int, int],
    config: Mapping[str, Any],
) -> int:
    expected = _DORA_PARTS if config.get("use_dora") else _PARTS
    if parts.keys() != expected:
        has, needs = (" and ".join(sorted(names)) for names in (parts, expected))
        raise refused(f"{name!r} has {has} where {needs} belong")
    lora_a, lora_b = parts["A"], parts["B"]
    rank: int = lora_a.shape[0]
    if tuple(lora_a.shape) != (rank, shape[0]) or tuple(lora_b.shape) != (shape[1], rank):
        raise refused(
            f"{name!r} has A {list(lora_a.shape)} and B {list(lora_b.shape)}; "
            f"the base's layer is {shape[0]} to {shape[1]}"
        )
    magnitude = parts.get("magnitude_vector")
    if magnitude is not None and tuple(magnitude.shape) != (shape[1],):
        raise refused(f"{name!r} has {list(magnitude.shape)} magnitudes for {shape[1]} outputs")
    return rank


def _check_finite(lora: LoraWeights) -> None:
    if lora.packed is not None and lora.packed.sum().isfinite():
        return  # one look at all of it; a sum may overflow, so a bad one proves nothing
    for name, pair in lora.pairs.items():
        if not all(bool(weights.isfinite().all()) for weights in pair):
            raise refused(f"{name!r} has weights that are not finite")


def _scaling(name: str, rank: int, config: Mapping[str, Any]) -> float:
    """alpha / r; rsLoRA (https://arxiv.org/abs/2312.03732): alpha / sqrt(r)."""
    alpha = config.get("lora_alpha", 8)
    for pattern, own in (config.get("alpha_pattern") or {}).items():
        if not _PLAIN_NAME.fullmatch(pattern):
            raise refused(f"alpha_pattern {pattern!r} is not the plain name of a layer")
        if name == pattern or name.endswith("." + pattern):
            alpha = own
            break
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not rank:
        raise refused(f"{CONFIG_NAME} has no usable lora_alpha for {name!r}")
    return float(alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)
