"""How much LoRA adapters add to their base's weights, each by itself and in sum."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from peft.tuners.lora import LoraLayer


def lora_layers(model: Any) -> Iterator[tuple[str, LoraLayer]]:
    """The layers of a PEFT model that have adapters, by their names in the base."""
    for name, module in model.base_model.model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def size(model: Any, weights: Mapping[str, float]) -> float:
    """The Frobenius norm, over all layers, of the weighted sum of what these adapters add."""
    squares = (
        _norm([_factors(layer, name, weight) for name, weight in weights.items()]) ** 2
        for _, layer in lora_layers(model)
    )
    return float(sum(squares) ** 0.5)


Factors = tuple[torch.Tensor, torch.Tensor]


def _factors(layer: LoraLayer, adapter: str, weight: float) -> Factors | None:
    """B [out, r], scaled, and A [r, in] in float64; None where the adapter leaves the layer be."""
    if adapter not in layer.lora_A:
        return None
    b = layer.lora_B[adapter].weight.detach().double()
    a = layer.lora_A[adapter].weight.detach().double()
    return b * (weight * layer.scaling[adapter]), a


def _norm(parts: list[Factors | None]) -> float:
    """||sum of B A|| without making it: with B = Q R and A' = P T, it is ||R T'||."""
    there = [part for part in parts if part is not None]
    if not there:
        return 0.0
    b = torch.cat([part[0] for part in there], dim=1)
    a = torch.cat([part[1] for part in there], dim=0)
    r = torch.linalg.qr(b, mode="r").R
    t = torch.linalg.qr(a.T, mode="r").R
    return float(torch.linalg.matrix_norm(r @ t.T))
