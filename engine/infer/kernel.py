"""The deltas of a batch's rows, compiled for a CPU whose base is in bfloat16.

A step that generates reads every row's LoRA once, and does little else with it: in bfloat16 it
reads half as much as in float32. PyTorch's bmm takes longer there than in float32, so the sums are
compiled by Numba: x and y in bfloat16, sums in float32, one rounding at the end.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import structlog
import torch

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class PackedRow:
    """A LoRA as the compiled function reads it; `gains` [all outputs] in float32, of DoRA alone.

    weights: flat, in bfloat16, in the order of a Layout.
    """

    rank: int
    weights: torch.Tensor
    gains: torch.Tensor | None = None


class Rows:
    """The LoRAs of the rows of a batch, None for a row that has none: where each begins."""

    def __init__(self, rows: Sequence[PackedRow | None]) -> None:
        self._kept = tuple(rows)  # they are known by their addresses below
        gains = [row.gains if row else None for row in rows]
        numbers = torch.tensor(
            [
                [row.rank if row else 0 for row in rows],
                [row.weights.data_ptr() if row else 0 for row in rows],
                [0 if own is None else own.data_ptr() for own in gains],
            ]
        )
        self._numbers = numbers
        self.count = len(rows)
        self.ranks, self.weights, self.gains = (part.data_ptr() for part in numbers)


class Compiled(Protocol):
    """What kernel_source.py has; the numbers are sizes, offsets and addresses."""

    @property
    def Call(self) -> Callable[..., Any]: ...  # a class

    def add_rows(self, threads: int, call: Any, /) -> None: ...


class Kernel:
    """Compiled in a second or two, once for the process."""

    def __init__(self, source: Compiled) -> None:
        self._source = source
        self.threads = torch.get_num_threads()  # those of PyTorch that help the calling one

    def add(
        self,
        inputs: torch.Tensor,
        rows: Rows,
        places: tuple[int, int],
        output: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        """output + B A x, and with DoRA's gains g also + g (output - bias); it may be in place.

        inputs [n, length, in], output [n, length, out], and bias [out] in bfloat16. places: the
        layer's offsets in the weights and in the gains.
        """
        # The compiled function reads where it is told to: what it could not know is checked here.
        inputs, output = inputs.contiguous(), output.contiguous()
        if not inputs.dtype == output.dtype == torch.bfloat16:
            raise ValueError(f"{inputs.dtype} in, {output.dtype} out: it is for bfloat16")
        count, length, n_in = inputs.shape
        n_out = output.shape[2]
        if output.shape[:2] != (count, length) or rows.count != count:
            raise ValueError(f"{tuple(inputs.shape)} in, {tuple(output.shape)} out: not these rows")
        call = self._source.Call(
            count, length, n_in, n_out,
            inputs.data_ptr(), output.data_ptr(), 0 if bias is None else bias.data_ptr(),
            rows.ranks, rows.weights, rows.gains, *places,
        )  # fmt: skip
        self._source.add_rows(self.threads, call)
        return output


@cache
def load() -> Kernel | None:
    """None, with a line in the log, without Numba, or where PyTorch's threads are not OpenMP's."""
    try:
        from engine.infer import kernel_source
    except (ImportError, OSError, AttributeError) as error:
        log.warning("engine.kernel_missing", reason=str(error))
        return None
    return Kernel(kernel_source)
