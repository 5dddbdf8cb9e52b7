"""The delta of one token a row, compiled for a CPU whose base is in bfloat16.

A step that generates reads every row's LoRA once, and does little else with it: in bfloat16 it
reads half as much as in float32. PyTorch's bmm takes longer there than in float32, so the sums are
compiled by Numba: x and y in bfloat16, sums in float32, one rounding at the end.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import structlog
import torch

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Rows:
    """The LoRAs of the rows of a batch, as the compiled function takes them.

    Of row i the first ranks[i] count.
    """

    width: int
    bits: Any
    ranks: Any


class Kernel:
    """Compiled in a second or two, once for the process."""

    def __init__(self, add_rows: Any, limit_threads: Callable[[int], None]) -> None:
        self._add_rows, self._limit_threads = add_rows, limit_threads

    def rows(self, weights: torch.Tensor, ranks: Sequence[int]) -> Rows:
        """weights: [n, rank, width] in bfloat16. From now on this thread uses as many as torch."""
        self._limit_threads(torch.get_num_threads())
        rows, rank, width = weights.shape
        return Rows(width, _bits(weights.view(rows, rank * width)), torch.tensor(ranks).numpy())

    def add(self, inputs: torch.Tensor, rows: Rows, offset: int, output: torch.Tensor) -> None:
        """output [n, out] += B A x for inputs [n, in], the layer's A and B at `offset` of a row."""
        self._add_rows(_bits(inputs), rows.bits, offset, rows.width, rows.ranks, _bits(output))


@cache
def load() -> Kernel | None:
    """None, with a line in the log, without Numba."""
    try:
        from engine.infer.kernel_source import add_rows, limit_threads
    except ImportError as error:
        log.warning("engine.kernel_missing", reason=str(error))
        return None
    return Kernel(add_rows, limit_threads)


def _bits(tensor: torch.Tensor) -> Any:
    return tensor.view(torch.int16).numpy()
