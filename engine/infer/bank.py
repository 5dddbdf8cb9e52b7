"""The LoRAs of the rows of a batch, side by side in one tensor: a layer adds them all at once."""

from collections.abc import Sequence
from typing import Protocol

import torch

from engine.infer.lora import Key, Layout, LoraWeights

MAX_BYTES = 4 << 30
_UNKNOWN = object()  # what a row holds that has to be written before it is used


class Bank(Protocol):
    """Knows the LoRAs of the rows that the next forward has, and adds their deltas.

    max_bytes: what the LoRAs of a batch may take in it, were they all different. shares: whether
    rows that have the same one read the same memory.
    """

    max_bytes: int
    shares: bool

    def fits(self, rows: int, rank: int) -> bool:
        """Whether so many rows, the highest rank among them, have room at once."""

    def aim(self, first: int, loras: Sequence[LoraWeights | None]) -> None:
        """The next forward has the rows [first, first + n), with these LoRAs."""

    def add(
        self, name: str, inputs: torch.Tensor, output: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """The layer's output [n, length, out] with each row's delta; it may be in place."""


class InFloat:
    """A tensor in float32. Layers side by side, as those of attention, share their inputs."""

    def __init__(self) -> None:
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        if inputs.dtype == torch.float32:
            return inputs
        if self._last is None or self._last[0] is not inputs:
            self._last = (inputs, inputs.float())
        return self._last[1]


class LoraBank:
    """Row i has the LoRA of row i of the batch, in float32 whatever the base is in.

    All rows have the highest rank of any.
    """

    shares = False

    def __init__(self, layout: Layout, device: torch.device) -> None:
        self._layout, self._device = layout, device
        self.max_bytes = MAX_BYTES
        self._weights = torch.zeros(0, 0, dtype=torch.float32, device=device)
        self._gains = torch.zeros(0, layout.gains, device=device)
        self._rank = 0  # that rows have room for
        self._held: list[object] = []  # the key of each row's LoRA, None, or _UNKNOWN
        self._aimed: tuple[int, int, int] | None = None
        self._last: tuple[int, list[Key | None]] | None = None
        self._parts: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._in_float = InFloat()
        self._rows = slice(0, 0)
        self._names: frozenset[str] = frozenset()
        self._lengthened: frozenset[str] = frozenset()

    def fits(self, rows: int, rank: int) -> bool:
        return rows * rank * self._layout.width * 4 <= self.max_bytes

    def aim(self, first: int, loras: Sequence[LoraWeights | None]) -> None:
        keys = [lora.key if lora else None for lora in loras]
        if self._last == (first, keys):
            return
        self._last = (first, keys)
        rank = max((lora.rank for lora in loras if lora), default=0)
        self._make_room(first + len(loras), rank)
        for row, (key, lora) in enumerate(zip(keys, loras, strict=True), first):
            if self._held[row] is not key:
                self._held[row] = key
                self._put(row, lora)
        aimed = (first, len(loras), rank)
        if aimed != self._aimed:
            self._aimed, self._parts = aimed, {}
        self._rows = slice(first, first + len(loras))
        self._names = frozenset().union(*(lora.pairs for lora in loras if lora))
        self._lengthened = frozenset().union(*(lora.gains for lora in loras if lora))

    def add(
        self, name: str, inputs: torch.Tensor, output: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        if name not in self._names:
            return output
        lora_a, lora_b = self._part(name)
        delta = torch.bmm(torch.bmm(self._in_float(inputs), lora_a), lora_b)
        if name in self._lengthened:
            offset, outputs = self._layout.outputs[name]
            gain = self._gains[self._rows, None, offset : offset + outputs]
            delta.addcmul_(gain, (output if bias is None else output - bias).float())
        return output.add_(delta)

    def _part(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A transposed [n, in, r] and B [n, r, out] of the rows that are aimed at."""
        part = self._parts.get(name)
        if part is None:
            assert self._aimed is not None
            lora_a, lora_b = self._layout.part(self._weights[self._rows], name)
            rank = self._aimed[2]
            part = self._parts[name] = (lora_a[:, :rank].mT, lora_b[:, :rank])
        return part

    def _put(self, row: int, lora: LoraWeights | None) -> None:
        weights, gains = self._weights[row], self._gains[row]
        if lora is None or lora.rank < self._rank:
            weights.zero_()
        if lora is not None:
            assert lora.packed is not None
            places, rank = self._layout.parts(weights), lora.rank
            torch._foreach_copy_([p[:rank] for p in places], self._layout.parts(lora.packed))
        if lora is None or lora.packed_gains is None:
            gains.zero_()
        else:
            gains.copy_(lora.packed_gains)

    def _make_room(self, rows: int, rank: int) -> None:
        if rows <= len(self._weights) and rank <= self._rank:
            return
        most = (max(rows, len(self._weights)), max(rank, self._rank))
        rows, self._rank = most if self.fits(*most) else (rows, rank)
        width = self._rank * self._layout.width
        self._weights = torch.zeros(rows, width, dtype=torch.float32, device=self._device)
        self._gains = torch.zeros(rows, self._layout.gains, device=self._device)
        self._held = [_UNKNOWN] * rows
        self._aimed, self._parts = None, {}
