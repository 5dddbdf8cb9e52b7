"""The LoRAs of the rows of a batch, side by side in one tensor: a layer adds them all at once."""

from collections.abc import Sequence

import torch

from engine.infer import kernel
from engine.infer.lora import Layout, LoraWeights

MAX_BYTES = 4 << 30
_UNKNOWN = object()  # what a row holds that has to be written before it is used


class LoraBank:
    """Row i has the LoRA of row i of the batch.

    In float32, also where the base is in bfloat16; there, on a CPU, in bfloat16 for the kernel. All
    rows have the highest rank of any, within `max_bytes`.
    """

    def __init__(self, layout: Layout, device: torch.device, dtype: torch.dtype) -> None:
        self._layout, self._device = layout, device
        self.max_bytes = MAX_BYTES
        quick = device.type == "cpu" and dtype == torch.bfloat16
        self._kernel = kernel.load() if quick else None
        self._dtype = torch.float32 if self._kernel is None else dtype
        self._weights = torch.zeros(0, 0, layout.width, dtype=self._dtype, device=device)
        self._aimed_rows: kernel.Rows | None = None
        self._gains = torch.zeros(0, layout.gains, device=device)
        self._held: list[object] = []  # the key of each row's LoRA, None, or _UNKNOWN
        self._aimed: tuple[int, int, int] | None = None
        self._last: tuple[int, list[object]] | None = None
        self._parts: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._inputs: tuple[torch.Tensor, torch.Tensor] | None = None
        self._rows = slice(0, 0)
        self._names: frozenset[str] = frozenset()
        self._lengthened: frozenset[str] = frozenset()

    def fits(self, rows: int, rank: int) -> bool:
        """Whether so many rows, the highest rank among them, have room at once."""
        needed: int = rows * rank * self._layout.width * self._dtype.itemsize
        return needed <= self.max_bytes

    def aim(self, first: int, loras: Sequence[LoraWeights | None]) -> None:
        """The next forward has the rows [first, first + n), with these LoRAs."""
        keys = [lora and lora.key for lora in loras]
        if self._last == (first, keys):
            return
        self._last = (first, keys)
        rank = max((lora.rank for lora in loras if lora), default=0)
        self._make_room(first + len(loras), rank)
        for row, (key, lora) in enumerate(zip(keys, loras, strict=True), first):
            if self._held[row] is not key:
                self._held[row] = key
                self._put(row, lora)
        if self._kernel is not None:
            mine = self._weights[first : first + len(loras)]
            ranks = [lora.rank if lora else 0 for lora in loras]
            self._aimed_rows = self._kernel.rows(mine, ranks)
        aimed = (first, len(loras), rank)
        if aimed != self._aimed:
            self._aimed, self._parts = aimed, {}
        self._rows = slice(first, first + len(loras))
        self._names = frozenset().union(*(lora.pairs for lora in loras if lora))
        self._lengthened = frozenset().union(*(lora.gains for lora in loras if lora))

    def add(
        self, name: str, inputs: torch.Tensor, output: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor | None:
        """The layer's output [n, length, out] with each row's delta; None where nobody has one."""
        if name not in self._names:
            return None
        if self._kernel is not None and inputs.shape[1] == 1 and name not in self._lengthened:
            assert self._aimed_rows is not None
            offset = self._layout.places[name][0]
            self._kernel.add(inputs[:, 0].contiguous(), self._aimed_rows, offset, output[:, 0])
            return output
        lora_a, lora_b = (weights.float() for weights in self._part(name))
        delta = torch.bmm(torch.bmm(self.in_float(inputs), lora_a), lora_b)
        if name in self._lengthened:
            offset, outputs = self._layout.outputs[name]
            gain = self._gains[self._rows, None, offset : offset + outputs]
            delta.addcmul_(gain, (output if bias is None else output - bias).float())
        return output.add_(delta)

    def in_float(self, inputs: torch.Tensor) -> torch.Tensor:
        """The inputs in float32. Layers side by side, as those of attention, share theirs."""
        if inputs.dtype == torch.float32:
            return inputs
        if self._inputs is None or self._inputs[0] is not inputs:
            self._inputs = (inputs, inputs.float())
        return self._inputs[1]

    def _part(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A transposed [n, in, r] and B [n, r, out] of the rows that are aimed at."""
        part = self._parts.get(name)
        if part is None:
            assert self._aimed is not None
            lora_a, lora_b = self._layout.part(self._weights[self._rows, : self._aimed[2]], name)
            part = self._parts[name] = (lora_a.mT, lora_b)
        return part

    def _put(self, row: int, lora: LoraWeights | None) -> None:
        rank = 0
        if lora is not None:
            assert lora.packed is not None
            rank = lora.rank
            self._weights[row, :rank] = lora.packed
        self._weights[row, rank:].zero_()
        if lora is None or lora.packed_gains is None:
            self._gains[row].zero_()
        else:
            self._gains[row] = lora.packed_gains

    def _make_room(self, rows: int, rank: int) -> None:
        has_rows, has_rank, width = self._weights.shape
        if rows <= has_rows and rank <= has_rank:
            return
        most = (max(rows, has_rows), max(rank, has_rank))
        grown = (*(most if self.fits(*most) else (rows, rank)), width)
        self._weights = torch.zeros(grown, dtype=self._dtype, device=self._device)
        self._gains = torch.zeros(grown[0], self._layout.gains, device=self._device)
        self._held = [_UNKNOWN] * grown[0]
        self._aimed, self._parts = None, {}
