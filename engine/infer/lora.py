"""LoRA weights in memory: by layer, and packed as a batch takes them.

A LoRA is packed layer by layer, each [rank, in + out]: A, and beside it B transposed. Then a layer
finds all that it needs in one place, and one of the rank of the batch is put into it by one copy.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from engine.infer.pages import zeros


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


class Pairs(Mapping[str, tuple[torch.Tensor, torch.Tensor]]):
    """A [r, in] and B [out, r] by module, made when they are asked for.

    Views of the packed LoRA, or copies in float32 of one in bfloat16. ranks: of each module that
    it has, at most that of the whole.
    """

    def __init__(self, packed: torch.Tensor, layout: Layout, ranks: Mapping[str, int]) -> None:
        self._packed, self._layout, self._ranks = packed, layout, ranks
        self._made: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def __getitem__(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        pair = self._made.get(name)
        if pair is None:
            rank = self._ranks[name]
            lora_a, lora_b = self._layout.part(self._packed, name)
            pair = self._made[name] = (lora_a[:rank].float(), lora_b[:rank].T.float())
        return pair

    def __iter__(self) -> Iterator[str]:
        return iter(self._ranks)

    def __len__(self) -> int:
        return len(self._ranks)


class Key:
    """By which a bank knows a LoRA without keeping it."""

    __slots__ = ("__weakref__",)


@dataclass(frozen=True, slots=True, eq=False)
class LoraWeights:
    """A by module [r, in] and B [out, r]; the scaling is folded into B, and so is DoRA's gain.

    rank: the largest of its layers. gains: of DoRA alone, by module [out], what the base's own
    output is multiplied by. `packed` is the whole [rank * width] as a bank takes it, in float32 or
    bfloat16; None where a layer is none that batches have room for.
    """

    pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    rank: int = 0
    gains: Mapping[str, torch.Tensor] = field(default_factory=dict)
    packed: torch.Tensor | None = None
    packed_gains: torch.Tensor | None = None
    key: Key = field(default_factory=Key)


def packed(
    pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    layout: Layout,
    scalings: Mapping[str, float],
) -> LoraWeights:
    """The LoRA with each B times its scaling, once in memory: packed, in float32."""
    ranks = {name: lora_a.shape[0] for name, (lora_a, _) in pairs.items()}
    rank = max(ranks.values())
    if not layout.places.keys() >= pairs.keys():
        scaled = {name: (a.float(), b.float() * scalings[name]) for name, (a, b) in pairs.items()}
        return LoraWeights(scaled, rank)
    whole = zeros(rank * layout.width, torch.float32, next(iter(pairs.values()))[0].device)
    lora = LoraWeights(Pairs(whole, layout, ranks), rank, packed=whole)
    views = lora.pairs
    # Hundreds of small copies: by one call each, and not from Python.
    torch._foreach_copy_([views[name][0] for name in pairs], [a for a, _ in pairs.values()])
    torch._foreach_copy_([views[name][1] for name in pairs], [b for _, b in pairs.values()])
    torch._foreach_mul_([views[name][1] for name in pairs], [scalings[name] for name in pairs])
    return lora


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
