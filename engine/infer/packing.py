"""Packs a LoRA from the numbers of its file, in one compiled call for all layers, on a CPU.

Hundreds of small tensors take PyTorch, one by one, ten times as long.
"""

from dataclasses import dataclass
from functools import cache
from typing import Protocol

import structlog
import torch

log = structlog.get_logger()

COLUMNS = 6


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Of each layer where A [r, in] and B [out, r] begin, where they go, r, in and out.

    rows: int64 [layers, 6]. scalings: float32 [layers], what B is multiplied by. `given` and
    `taken` are how many numbers there are to read and to write: the rows must keep to them.
    """

    rows: torch.Tensor
    scalings: torch.Tensor
    given: int
    taken: int


class Compiled(Protocol):
    """What packing_source.py has; the numbers are sizes and addresses."""

    def pack_halves(
        self, layers: int, table: int, scalings: int, numbers: int, whole: int, /
    ) -> None: ...

    def pack_floats(
        self, layers: int, table: int, scalings: int, numbers: int, whole: int, /
    ) -> None: ...


class Packer:
    """Compiled in a second, once for the process."""

    def __init__(self, source: Compiled) -> None:
        self._packs = {torch.bfloat16: source.pack_halves, torch.float32: source.pack_floats}

    def pack(self, numbers: torch.Tensor, table: Table, whole: torch.Tensor) -> None:
        """Write the layers' places of a packed LoRA, in float32, or rounded once to bfloat16.

        numbers: flat, in float32.
        """
        # The compiled function reads and writes where it is told to.
        if numbers.dtype != torch.float32 or whole.dtype not in self._packs:
            raise ValueError(f"from {numbers.dtype} to {whole.dtype}: it is for float32")
        if (numbers.numel(), whole.numel()) != (table.given, table.taken):
            raise ValueError(f"{numbers.numel()} numbers to {whole.numel()}: not of this table")
        if not (numbers.is_contiguous() and whole.is_contiguous()):
            raise ValueError("it is for numbers that lie side by side")
        self._packs[whole.dtype](
            len(table.rows),
            table.rows.data_ptr(),
            table.scalings.data_ptr(),
            numbers.data_ptr(),
            whole.data_ptr(),
        )


@cache
def load() -> Packer | None:
    """None, with a line in the log, where Numba is not there."""
    try:
        from engine.infer import packing_source
    except ImportError as error:
        log.warning("engine.packer_missing", reason=str(error))
        return None
    return Packer(packing_source)
