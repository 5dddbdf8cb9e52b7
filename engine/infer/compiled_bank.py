"""The LoRAs of the rows of a batch on a CPU whose base is in bfloat16, for the compiled delta."""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch

from engine.infer.bank import MAX_BYTES
from engine.infer.kernel import Kernel, PackedRow, Rows
from engine.infer.lora import Key, Layout, LoraWeights


class CompiledBank:
    """Each LoRA once, in its own rank, however many rows have it; as long as it is resident."""

    shares = True

    def __init__(self, layout: Layout, kernel: Kernel) -> None:
        self._layout, self._kernel = layout, kernel
        self.max_bytes = MAX_BYTES
        self._held: WeakKeyDictionary[Key, PackedRow] = WeakKeyDictionary()
        self._last: tuple[int, list[Key | None]] | None = None
        self._rows = Rows([])
        self._names: frozenset[str] = frozenset()

    def fits(self, rows: int, rank: int) -> bool:
        needed: int = rows * rank * self._layout.width * torch.bfloat16.itemsize
        return needed <= self.max_bytes

    def aim(self, first: int, loras: Sequence[LoraWeights | None]) -> None:
        keys = [lora.key if lora else None for lora in loras]
        if self._last == (first, keys):
            return
        self._last = (first, keys)
        self._kernel.threads = torch.get_num_threads()
        self._rows = Rows([None if lora is None else self._row_of(lora) for lora in loras])
        self._names = frozenset().union(*(lora.pairs for lora in loras if lora))

    def add(
        self, name: str, inputs: torch.Tensor, output: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        if name not in self._names:
            return output
        places = (self._layout.places[name][0], self._layout.outputs[name][0])
        return self._kernel.add(inputs, self._rows, places, output, bias)

    def _row_of(self, lora: LoraWeights) -> PackedRow:
        row = self._held.get(lora.key)
        if row is None:
            assert lora.packed is not None
            row = PackedRow(lora.rank, lora.packed.bfloat16(), lora.packed_gains)
            self._held[lora.key] = row
        return row
