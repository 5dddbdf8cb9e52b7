"""What Numba compiles; imported where Numba is there."""

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import config, njit, prange, set_num_threads, types
from numba.extending import intrinsic
from numba.np.numpy_support import carray

_WORD = ir.IntType(32)
_HALVES, _LONGS, _FLOATS = map(types.CPointer, (types.int16, types.int64, types.float32))
# What is not a number stays one that is not.
_FAST = {"reassoc", "contract", "nsz"}


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


def _address_of(pointer: Any, stored: Any) -> Any:
    def point(_: Any, address: Any) -> Any:
        def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], stored.as_pointer())

        return pointer(types.int64), generate

    return point


_widened: Any = intrinsic(_widen)
_rounded: Any = intrinsic(_round)
_halves: Any = intrinsic(_address_of(_HALVES, ir.IntType(16)))  # bfloat16, as their bits
_longs: Any = intrinsic(_address_of(_LONGS, ir.IntType(64)))
_floats: Any = intrinsic(_address_of(_FLOATS, ir.FloatType()))


def limit_threads(threads: int) -> None:
    """How many the calling thread's calls may use."""
    most: int = config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]  # set when it is imported
    set_num_threads(min(threads, most))


@njit(fastmath=_FAST)
def _lengthen(given, bias, gains, sums):  # type: ignore[no-untyped-def]
    """DoRA: sums += gain * (given - bias)."""
    for i in range(len(given)):
        own = np.float32(0)
        if len(bias):
            own = _widened(bias[i])
        sums[i] += gains[i] * (_widened(given[i]) - own)


@njit(fastmath=_FAST)
def _add_row(x, weights, rank, sums):  # type: ignore[no-untyped-def]
    """sums [out] += B A x; weights: for each of the ranks a row of A and then a column of B."""
    n_in, n_out = len(x), len(sums)
    for k in range(rank):
        begin = k * (n_in + n_out)
        lora_a = weights[begin : begin + n_in]
        lora_b = weights[begin + n_in : begin + n_in + n_out]
        inner = np.float32(0)
        for i in range(n_in):
            inner += x[i] * _widened(lora_a[i])
        for i in range(n_out):
            sums[i] += inner * _widened(lora_b[i])


@njit(fastmath=_FAST)
def _add_all(given, result, bias, rank, weights, gains):  # type: ignore[no-untyped-def]
    """What one token of a row gets; weights and gains: where this layer's begin, 0 for none."""
    n_in, n_out = len(given), len(result)
    x, sums = np.empty(n_in, np.float32), np.zeros(n_out, np.float32)
    for i in range(n_in):
        x[i] = _widened(given[i])
    if gains:
        _lengthen(result, bias, carray(_floats(gains), (n_out,)), sums)
    _add_row(x, carray(_halves(weights), (rank * (n_in + n_out),)), rank, sums)
    for i in range(n_out):
        result[i] = _rounded(_widened(result[i]) + sums[i])


# By addresses: a call with arrays takes longer to begin than a small layer takes to add.
@njit(
    "void(int64, int64, int64, int64, int64, int64, int64, int64, int64, int64, int64, int64)",
    parallel=True,
    fastmath=_FAST,
)
def add_rows(  # type: ignore[no-untyped-def]
    rows, length, n_in, n_out, inputs, outputs, bias, ranks, weights, gains, offset, gain_offset
):
    """See engine/infer/kernel.py; what is no size and no offset is an address, 0 for nothing."""
    all_x = carray(_halves(inputs), (rows * length, n_in))
    all_y = carray(_halves(outputs), (rows * length, n_out))
    its_bias = carray(_halves(bias), (n_out if bias else 0,))
    rank_of = carray(_longs(ranks), (rows,))
    weights_of, gains_of = carray(_longs(weights), (rows,)), carray(_longs(gains), (rows,))
    for place in prange(rows * length):
        row = place // length
        rank = rank_of[row]
        if rank:
            first = weights_of[row] + 2 * offset * rank
            own = gains_of[row]
            if own:
                own += 4 * gain_offset
            _add_all(all_x[place], all_y[place], its_bias, rank, first, own)
