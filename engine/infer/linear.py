"""The linear layers of a model that is shared: each adds the delta of whoever is being served."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from engine.infer import packing
from engine.infer.bank import Bank, InFloat, LoraBank
from engine.infer.compiled_bank import CompiledBank
from engine.infer.dora import lengthen
from engine.infer.kernel import Kernel, load
from engine.infer.lora import Layout, LoraWeights
from engine.infer.lora_plan import Plans
from engine.infer.packed_linear import Multiply, pack

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
        self.layout = Layout(
            {name: shape for name, shape in self.shapes.items() if self._layers[name] is not head}
        )
        self.plans = Plans(self.shapes, self.layout)
        self._in_float = InFloat()
        self.packer = packing.load() if device.type == "cpu" else None
        self.kernel = _kernel(device, dtype)
        self.bank: Bank = (
            CompiledBank(self.layout, self.kernel)
            if self.kernel is not None
            else LoraBank(self.layout, device)
        )
        self._packed = pack(model, self._layers)
        for name, layer in self._layers.items():
            layer.forward = self._forward(name, layer)

    def activate(self, lora: LoraWeights | None) -> None:
        """From now on all rows get this adapter's delta; None: nobody's."""
        self._active = lora or _NOBODY

    def activate_rows(self, first: int, loras: Sequence[LoraWeights | None]) -> None:
        """From now on the rows of the batch from `first` on get the delta of theirs.

        Each must be packed.
        """
        alike = all(lora is loras[0] for lora in loras)
        if alike and (loras[0] is None or not self.bank.shares):
            self.activate(loras[0])
            return
        self._active = None
        self.bank.aim(first, loras)

    def weight_of(self, name: str) -> torch.Tensor:
        """The base's own weight of a linear layer [out, in]."""
        if name in self._packed:
            return self._packed[name].weight()
        layer: Any = self._layers[name]
        weight: torch.Tensor = layer.weight.detach()
        return weight.T if isinstance(layer, Conv1D) else weight

    def _forward(self, name: str, layer: nn.Module) -> Multiply:
        """What the layer does from now on. It stays the module that it was."""
        multiply: Multiply = layer.forward
        if name in self._packed:
            multiply = self._packed[name].multiply
        bias: Any = layer.bias

        def forward(inputs: torch.Tensor) -> torch.Tensor:
            output = multiply(inputs)
            active = self._active
            if active is None:
                return self.bank.add(name, inputs, output, bias)
            pair = active.pairs.get(name)
            if pair is None:
                return output
            lora_a, lora_b = pair
            gain = active.gains.get(name)
            inner = functional.linear(self._in_float(inputs), lora_a)
            delta = functional.linear(inner, lora_b)
            if gain is None:
                return output.add_(delta)
            return (lengthen(layer, output, gain) + delta).to(output.dtype)

        return forward


def _kernel(device: torch.device, dtype: torch.dtype) -> Kernel | None:
    return load() if device.type == "cpu" and dtype == torch.bfloat16 else None
