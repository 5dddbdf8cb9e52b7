"""LoRA on a model that is shared: every linear layer adds the delta of whoever is being served."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from engine.infer.dora import gain_of, lengthen
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


@dataclass(frozen=True, slots=True)
class LoraWeights:
    """A by module [r, in] and B [out, r]; the scaling is folded into B, and so is DoRA's gain.

    gains: of DoRA alone, by module [out], what the base's own output is multiplied by.
    """

    pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    gains: Mapping[str, torch.Tensor] = field(default_factory=dict)


_NOBODY = LoraWeights({})


class LoraSwitch:
    """The linear layers of one model, and whose delta they add in the forward that runs now."""

    def __init__(self, model: nn.Module) -> None:
        self.shapes: dict[str, tuple[int, int]] = {}  # module name -> (in, out)
        self._layers: dict[str, nn.Module] = {}
        self._active = _NOBODY
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                self.shapes[name] = (module.in_features, module.out_features)
            elif isinstance(module, Conv1D):
                self.shapes[name] = (module.nx, module.nf)
            else:
                continue
            self._layers[name] = module
            module.register_forward_hook(self._hook(name))

    def activate(self, lora: LoraWeights | None) -> None:
        """From now on the layers add this adapter's delta; None: nobody's."""
        self._active = lora or _NOBODY

    def weight_of(self, name: str) -> torch.Tensor:
        """The base's own weight of a linear layer [out, in]."""
        layer = self._layers[name]
        weight: torch.Tensor = layer.weight.detach()
        return weight.T if isinstance(layer, Conv1D) else weight

    def _hook(self, name: str) -> Any:
        # A hook and not a module in the layer's place: models that read `layer.weight` still can.
        def add_delta(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: Any) -> Any:
            pair = self._active.pairs.get(name)
            if pair is None:
                return None
            lora_a, lora_b = pair
            gain = self._active.gains.get(name)
            plain = output if gain is None else lengthen(layer, output, gain)
            delta = functional.linear(functional.linear(inputs[0].to(lora_a.dtype), lora_a), lora_b)
            return (plain + delta).to(output.dtype)

        return add_delta


def load_lora(
    folder: Path,
    shapes: Mapping[str, tuple[int, int]],
    device: torch.device,
    weight_of: Callable[[str], torch.Tensor],
) -> LoraWeights:
    """Read a PEFT LoRA folder for the model with these linear layers. Raises AdapterRefused.

    `weight_of(name)` is the base's weight [out, in], which DoRA needs. Weights are kept in float32,
    as PEFT does, also on a bfloat16 base.
    """
    config = read_config(folder, "LORA", unsupported=UNSUPPORTED)
    return lora_of(config, read_tensors(folder), shapes, device, weight_of)


def lora_of(
    config: Mapping[str, Any],
    tensors: Iterable[tuple[str, torch.Tensor]],
    shapes: Mapping[str, tuple[int, int]],
    device: torch.device,
    weight_of: Callable[[str], torch.Tensor],
) -> LoraWeights:
    """The same from a configuration and tensors by name that have been read."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors:
        match = _KEY.fullmatch(key)
        if match is None:
            raise refused(f"tensor {key!r} is no part of a linear layer's LoRA")
        if match["module"] not in shapes:
            raise refused(f"{match['module']!r} is not a linear layer of the base model")
        part = match["part"].removesuffix(".weight")
        found.setdefault(match["module"], {})[part] = tensor.to(device, torch.float32)
    if not found:
        raise refused("it has no weights")
    pairs = {name: _pair(name, parts, shapes[name], config) for name, parts in found.items()}
    if not config.get("use_dora"):
        return LoraWeights(pairs)
    gains = {
        name: gain_of(parts["magnitude_vector"], weight_of(name), *pairs[name])
        for name, parts in found.items()
    }
    scaled = {name: (a, gains[name][:, None] * b) for name, (a, b) in pairs.items()}
    return LoraWeights(scaled, gains)


def _pair(
    name: str,
    parts: Mapping[str, torch.Tensor],
    shape: tuple[int, int],
    config: Mapping[str, Any],
) -> tuple[torch.Tensor, torch.Tensor]:
    expected = _DORA_PARTS if config.get("use_dora") else _PARTS
    if parts.keys() != expected:
        has, needs = (" and ".join(sorted(names)) for names in (parts, expected))
        raise refused(f"{name!r} has {has} where {needs} belong")
    lora_a, lora_b = parts["A"], parts["B"]
    rank = lora_a.shape[0]
    if tuple(lora_a.shape) != (rank, shape[0]) or tuple(lora_b.shape) != (shape[1], rank):
        raise refused(
            f"{name!r} has A {list(lora_a.shape)} and B {list(lora_b.shape)}; "
            f"the base's layer is {shape[0]} to {shape[1]}"
        )
    magnitude = parts.get("magnitude_vector")
    if magnitude is not None and tuple(magnitude.shape) != (shape[1],):
        raise refused(f"{name!r} has {list(magnitude.shape)} magnitudes for {shape[1]} outputs")
    scaled = lora_b * _scaling(name, rank, config)
    if not (lora_a.isfinite().all() and scaled.isfinite().all()):
        raise refused(f"{name!r} has weights that are not finite")
    return lora_a.contiguous(), scaled.contiguous()


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
