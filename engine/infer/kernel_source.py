"""What Numba compiles; imported where Numba is there."""

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import config, njit, prange, set_num_threads, types
from numba.extending import intrinsic

_WORD = ir.IntType(32)


def _widen(_: Any, bits: Any) -> Any:
    """A bfloat16, given as its bits, in float32."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        word = builder.zext(arguments[0], _WORD)
        return builder.bitcast(builder.shl(word, ir.Constant(_WORD, 16)), ir.FloatType())

    return types.float32(types.int16), generate


def _round(_: Any, number: Any) -> Any:
    """The bits of the bfloat16 that is nearest to a float32; of two, the even one."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        word = builder.bitcast(arguments[0], _WORD)
        sixteen, one = ir.Constant(_WORD, 16), ir.Constant(_WORD, 1)
        odd = builder.and_(builder.lshr(word, sixteen), one)
        half = builder.add(odd, ir.Constant(_WORD, 0x7FFF))
        return builder.trunc(builder.lshr(builder.add(word, half), sixteen), ir.IntType(16))

    return types.int16(types.float32), generate


_widened: Any = intrinsic(_widen)
_rounded: Any = intrinsic(_round)


def limit_threads(threads: int) -> None:
    """How many the calling thread's calls may use."""
    most: int = config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]  # set when it is imported
    set_num_threads(min(threads, most))


@njit(
    "void(int16[:,::1], int16[:,::1], int64, int64, int64[::1], int16[:,::1])",
    parallel=True,
    fastmath={"reassoc", "contract", "nsz"},  # what is not a number stays one that is not
)
def add_rows(inputs, weights, offset, width, ranks, output):  # type: ignore[no-untyped-def]
    """See engine/infer/kernel.py. All arrays are the bits of bfloat16."""
    rows, n_in = inputs.shape
    n_out = output.shape[1]
    for row in prange(rows):
        x = np.empty(n_in, np.float32)
        given = inputs[row]
        for i in range(n_in):
            x[i] = _widened(given[i])
        sums = np.zeros(n_out, np.float32)
        for k in range(ranks[row]):
            begin = k * width + offset
            lora_a = weights[row, begin : begin + n_in]
            lora_b = weights[row, begin + n_in : begin + n_in + n_out]
            inner = np.float32(0)
            for i in range(n_in):
                inner += x[i] * _widened(lora_a[i])
            for i in range(n_out):
                sums[i] += inner * _widened(lora_b[i])
        result = output[row]
        for i in range(n_out):
            result[i] = _rounded(_widened(result[i]) + sums[i])
