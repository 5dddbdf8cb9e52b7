"""LoRA on a model that is shared: every linear layer adds the delta of whoever is being served."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from engine.infer.bank import Layout, LoraBank
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


@dataclass(frozen=True, slots=True, eq=False)
class LoraWeights:
    """A by module [r, in] and B [out, r]; the scaling is folded into B, and so is DoRA's gain.

    gains: of DoRA alone, by module [out], what the base's own output is multiplied by. `packed` is
    the whole as a LoraBank takes it, None where a layer is none that batches have room for.
    """

    pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    gains: Mapping[str, torch.Tensor] = field(default_factory=dict)
    packed: torch.Tensor | None = None
    packed_gains: torch.Tensor | None = None
    key: object = field(default_factory=object)  # by which a bank knows it without keeping it

    @property
    def rank(self) -> int:
        """The largest of its layers."""
        return max((a.shape[0] for a, _ in self.pairs.values()), default=0)


_NOBODY = LoraWeights({})


class LinearLayers:
    """The linear layers of one model, and whose deltas they add in the forward that runs now.

    `layout` has all of them but the one that makes logits, which is wide and hardly ever trained.
    """

    def __init__(self, model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        self.shapes: dict[str, tuple[int, int]] = {}  # module name -> (in, out)
        self._layers: dict[str, nn.Module] = {}
        self._active: LoraWeights | None = _NOBODY  # None: whoever the rows of the bank have
        head = model.get_output_embeddings()
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                self.shapes[name] = (module.in_features, module.out_features)
            elif isinstance(module, Conv1D):
                self.shapes[name] = (module.nx, module.nf)
            else:
                continue
            self._layers[name] = module
            module.register_forward_hook(self._hook(name))
        self.layout = Layout(
            {name: shape for name, shape in self.shapes.items() if self._layers[name] is not head}
        )
        self.bank = LoraBank(self.layout, device, dtype)

    def activate(self, lora: LoraWeights | None) -> None:
        """From now on all rows get this adapter's delta; None: nobody's."""
        self._active = lora or _NOBODY

    def activate_rows(self, first: int, loras: Sequence[LoraWeights | None]) -> None:
        """From now on the rows of the batch from `first` on get the delta of theirs.

        Each must be packed.
        """
        if all(lora is loras[0] for lora in loras):
            self.activate(loras[0])
            return
        self._active = None
        self.bank.aim(first, loras)

    def weight_of(self, name: str) -> torch.Tensor:
        """The base's own weight of a linear layer [out, in]."""
        layer = self._layers[name]
        weight: torch.Tensor = layer.weight.detach()
        return weight.T if isinstance(layer, Conv1D) else weight

    def _hook(self, name: str) -> Any:
        # A hook and not a module in the layer's place: models that read `layer.weight` still can.
        def add_delta(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: Any) -> Any:
            active = self._active
            if active is None:
                return self.bank.add(name, inputs[0], output, getattr(layer, "bias", None))
            pair = active.pairs.get(name)
            if pair is None:
                return None
            lora_a, lora_b = pair
            gain = active.gains.get(name)
            plain = output if gain is None else lengthen(layer, output, gain)
            delta = functional.linear(functional.linear(inputs[0].to(lora_a.dtype), lora_a), lora_b)
            return (plain + delta).to(output.dtype)

        return add_delta


def load_lora(folder: Path, layers: LinearLayers, device: torch.device) -> LoraWeights:
    """Read a PEFT LoRA folder for the model with these linear layers. Raises AdapterRefused.

    Weights are kept in float32, as PEFT does, also on a bfloat16 base.
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
    lora = packed(pairs, layers.layout, scalings)
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


def packed(
    pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    layout: Layout,
    scalings: Mapping[str, float],
) -> LoraWeights:
    """The LoRA with each B times its scaling, once in memory: packed, and by layer as views.

    Its weights are copies, in float32.
    """
    if not layout.places.keys() >= pairs.keys():
        scaled = {name: (a.float(), b.float() * scalings[name]) for name, (a, b) in pairs.items()}
        return LoraWeights(scaled)
    rank = max(a.shape[0] for a, _ in pairs.values())
    some = next(iter(pairs.values()))[0]
    whole = torch.zeros(rank, layout.width, dtype=torch.float32, device=some.device)
    views = {name: layout.part(whole[: a.shape[0]], name) for name, (a, _) in pairs.items()}
    # Hundreds of small copies: by one call each, and not from Python.
    torch._foreach_copy_([a for a, _ in views.values()], [a for a, _ in pairs.values()])
    torch._foreach_copy_([b for _, b in views.values()], [b.T for _, b in pairs.values()])
    torch._foreach_mul_([b for _, b in views.values()], [scalings[name] for name in views])
    return LoraWeights({name: (a, b.T) for name, (a, b) in views.items()}, packed=whole)


def combined(parts: Sequence[tuple[LoraWeights, float]], layout: Layout) -> LoraWeights:
    """One LoRA that adds the weighted sum of the deltas of several, none of them DoRA.

    sum w_i B_i A_i = [w_1 B_1, w_2 B_2, ...] [A_1; A_2; ...], so its rank is the sum of theirs.
    """
    pairs = {}
    for name in dict.fromkeys(name for lora, _ in parts for name in lora.pairs):
        those = [(*lora.pairs[name], weight) for lora, weight in parts if name in lora.pairs]
        lora_a = torch.cat([a for a, _, _ in those])
        lora_b = torch.cat([weight * b for _, b, weight in those], dim=1)
        pairs[name] = (lora_a, lora_b)
    return packed(pairs, layout, dict.fromkeys(pairs, 1.0))


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
