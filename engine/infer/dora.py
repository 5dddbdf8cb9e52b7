"""DoRA: each output of a linear layer gets a trained length, computed once when it is loaded."""

import torch
from torch import nn

from engine.infer.errors import AdapterRefused


def gain_of(
    magnitude: torch.Tensor, weight: torch.Tensor, lora_a: torch.Tensor, lora_b: torch.Tensor
) -> torch.Tensor:
    """m / ||W + B A|| by output [out], with s folded into B (Liu et al. 2024, eq. 5).

    W is [out, in], A [r, in], B [out, r], and m [out]. Raises AdapterRefused where it is no number.
    """
    length = torch.linalg.norm(weight.to(lora_a.dtype) + lora_b @ lora_a, dim=1)
    gain = magnitude / length
    if not gain.isfinite().all():
        raise AdapterRefused(
            "adapter_invalid",
            "The adapter cannot be served: its DoRA magnitudes do not fit the base's weights. "
            "Train it again.",
        )
    return gain


def lengthen(layer: nn.Module, output: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """W x * gain + bias, from the layer's output W x + bias [..., out]."""
    bias = getattr(layer, "bias", None)
    plain = output if bias is None else output - bias
    return output + (gain - 1) * plain
