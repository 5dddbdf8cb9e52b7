"""LoRA weights in memory: by layer, and packed as a batch takes them.

A LoRA is packed layer by layer, each [rank, in + out]: A, and beside it B transposed. Then a layer
finds all that it needs in one place, and one of the rank of the batch is put into it by one copy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch


class Layout:
    """Where each linear layer's part is in a packed LoRA.

    shapes: by name (in, out).
    """

    def __init__(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        self.places: dict[str, tuple[int, int, int]] = {}  # name -> (offset, in, out)
        self.outputs: dict[str, tuple[int, int]] = {}  # name -> (offset, out) among all outputs
        self.width = self.gains = 0
        for name, (n_in, n_out) in shapes.items():
            self.places[name] = (self.width, n_in, n_out)
            self.outputs[name] = (self.gains, n_out)
            self.width += n_in + n_out
            self.gains += n_out

    def pack_gains(self, gains: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What each output is multiplied by, less 1: [all outputs]."""
        some = next(iter(gains.values()))
        packed = torch.zeros(self.gains, dtype=torch.float32, device=some.device)
        for name, gain in gains.items():
            offset, outputs = self.outputs[name]
            packed[offset : offset + outputs] = gain - 1
        return packed

    def part(self, packed: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The views A [..., r, in] and B [..., r, out] of a layer in [..., r * width]."""
        offset, n_in, n_out = self.places[name]
        rank = packed.shape[-1] // self.width
        part = packed[..., rank * offset : rank * (offset + n_in + n_out)]
        layer = part.unflatten(-1, (rank, n_in + n_out))
        return layer[..., :n_in], layer[..., n_in:]

    def parts(self, packed: torch.Tensor) -> list[torch.Tensor]:
        """All layers in [r * width], as views [r, in + out]."""
        rank = packed.shape[-1] // self.width
        sizes = [rank * (n_in + n_out) for _, n_in, n_out in self.places.values()]
        return [part.view(rank, -1) for part in packed.split(sizes)]


class Key:
    """By which a bank knows a LoRA without keeping it."""

    __slots__ = ("__weakref__",)


@dataclass(frozen=True, slots=True, eq=False)
class LoraWeights:
    """A by module [r, in] and B [out, r]; the scaling is folded into B, and so is DoRA's gain.

    gains: of DoRA alone, by module [out], what the base's own output is multiplied by. `packed` is
    the whole [rank * width] as a bank takes it, None where a layer is none that batches have room
    for.
    """

    pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    gains: Mapping[str, torch.Tensor] = field(default_factory=dict)
    packed: torch.Tensor | None = None
    packed_gains: torch.Tensor | None = None
    key: Key = field(default_factory=Key)

    @property
    def rank(self) -> int:
        """The largest of its layers."""
        return max((a.shape[0] for a, _ in self.pairs.values()), default=0)


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
    whole = torch.zeros(rank * layout.width, dtype=torch.float32, device=some.device)
    places = dict(zip(layout.places, layout.parts(whole), strict=True))
    views = {}
    for name, (lora_a, _) in pairs.items():
        own, n_in = lora_a.shape
        place = places[name] if own == rank else places[name][:own]
        views[name] = (place[:, :n_in], place[:, n_in:])
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
