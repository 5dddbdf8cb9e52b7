"""What Numba compiles; imported where Numba is there."""

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numba import cfunc, njit
from numba.np.numpy_support import carray

from engine.infer.compiled_types import floats, halves, longs, rounded, widened

_CALL = 12
Call = ctypes.c_int64 * _CALL  # in the order of `add_share`
# PyTorch's own team of threads: two teams on the same cores wait for each other. This is how a
# compiler enters a parallel region, of GNU's OpenMP and of those that stand in for it.
_openmp = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
_parallel = _openmp.GOMP_parallel
_parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
_parallel.restype = None
_omp_get_thread_num = _openmp.omp_get_thread_num
_omp_get_num_threads = _openmp.omp_get_num_threads
for _function in (_omp_get_thread_num, _omp_get_num_threads):
    _function.argtypes, _function.restype = (), ctypes.c_int
# What is not a number stays one that is not.
_FAST = {"reassoc", "contract", "nsz"}


@njit(fastmath=_FAST)
def _lengthen(given, bias, gains, sums):  # type: ignore[no-untyped-def]
    """DoRA: sums += gain * (given - bias)."""
    for i in range(len(given)):
        own = np.float32(0)
        if len(bias):
            own = widened(bias[i])
        sums[i] += gains[i] * (widened(given[i]) - own)


@njit(fastmath=_FAST)
def _add_rank(x, weights, sums):  # type: ignore[no-untyped-def]
    """sums [out] += b (a x); weights: a row a of A and then a column b of B."""
    n_in, n_out = len(x), len(sums)
    lora_a, lora_b = weights[:n_in], weights[n_in:]
    inner = np.float32(0)
    for i in range(n_in):
        inner += x[i] * widened(lora_a[i])
    for i in range(n_out):
        sums[i] += inner * widened(lora_b[i])


@njit(fastmath=_FAST)
def _add_four_ranks(x, weights, sums):  # type: ignore[no-untyped-def]
    """The same for four in one go: x and the sums are looked at once."""
    n_in, n_out = len(x), len(sums)
    a0, b0, a1, b1, a2, b2, a3, b3 = (
        weights[:n_in],
        weights[n_in : n_in + n_out],
        weights[n_in + n_out : 2 * n_in + n_out],
        weights[2 * n_in + n_out : 2 * (n_in + n_out)],
        weights[2 * (n_in + n_out) : 3 * n_in + 2 * n_out],
        weights[3 * n_in + 2 * n_out : 3 * (n_in + n_out)],
        weights[3 * (n_in + n_out) : 4 * n_in + 3 * n_out],
        weights[4 * n_in + 3 * n_out :],
    )
    c0 = c1 = c2 = c3 = np.float32(0)
    for i in range(n_in):
        c0 += x[i] * widened(a0[i])
        c1 += x[i] * widened(a1[i])
        c2 += x[i] * widened(a2[i])
        c3 += x[i] * widened(a3[i])
    for i in range(n_out):
        near = c0 * widened(b0[i]) + c1 * widened(b1[i])
        far = c2 * widened(b2[i]) + c3 * widened(b3[i])
        sums[i] += near + far


@njit(fastmath=_FAST)
def _add_eight_ranks(x, weights, sums):  # type: ignore[no-untyped-def]
    """The same for eight in one go: x and the sums are looked at once, and the memory is asked for
    eight rows at a time, which is what a batch of different LoRAs waits for.
    """
    n_in, each = len(x), len(x) + len(sums)
    r0 = weights[:each]
    r1 = weights[each : 2 * each]
    r2 = weights[2 * each : 3 * each]
    r3 = weights[3 * each : 4 * each]
    r4 = weights[4 * each : 5 * each]
    r5 = weights[5 * each : 6 * each]
    r6 = weights[6 * each : 7 * each]
    r7 = weights[7 * each : 8 * each]
    c0 = c1 = c2 = c3 = c4 = c5 = c6 = c7 = np.float32(0)
    for i in range(n_in):
        c0 += x[i] * widened(r0[i])
        c1 += x[i] * widened(r1[i])
        c2 += x[i] * widened(r2[i])
        c3 += x[i] * widened(r3[i])
        c4 += x[i] * widened(r4[i])
        c5 += x[i] * widened(r5[i])
        c6 += x[i] * widened(r6[i])
        c7 += x[i] * widened(r7[i])
    b0, b1, b2, b3, b4, b5, b6, b7 = (
        r0[n_in:], r1[n_in:], r2[n_in:], r3[n_in:],
        r4[n_in:], r5[n_in:], r6[n_in:], r7[n_in:],
    )  # fmt: skip
    for i in range(len(sums)):
        first = c0 * widened(b0[i]) + c1 * widened(b1[i])
        second = c2 * widened(b2[i]) + c3 * widened(b3[i])
        third = c4 * widened(b4[i]) + c5 * widened(b5[i])
        fourth = c6 * widened(b6[i]) + c7 * widened(b7[i])
        sums[i] += (first + second) + (third + fourth)


@njit(fastmath=_FAST)
def _add_row(x, weights, rank, sums):  # type: ignore[no-untyped-def]
    """sums [out] += B A x; weights: for each of the ranks a row of A and then a column of B."""
    each = len(x) + len(sums)
    eights, fours = rank - rank % 8, rank - rank % 4
    for k in range(0, eights, 8):
        _add_eight_ranks(x, weights[k * each : (k + 8) * each], sums)
    for k in range(eights, fours, 4):
        _add_four_ranks(x, weights[k * each : (k + 4) * each], sums)
    for k in range(fours, rank):
        _add_rank(x, weights[k * each : (k + 1) * each], sums)


@njit(fastmath=_FAST)
def _add_all(given, result, bias, rank, weights, gains):  # type: ignore[no-untyped-def]
    """What one token of a row gets; weights and gains: where this layer's begin, 0 for none."""
    n_in, n_out = len(given), len(result)
    x, sums = np.empty(n_in, np.float32), np.zeros(n_out, np.float32)
    for i in range(n_in):
        x[i] = widened(given[i])
    if gains:
        _lengthen(result, bias, carray(floats(gains), (n_out,)), sums)
    _add_row(x, carray(halves(weights), (rank * (n_in + n_out),)), rank, sums)
    for i in range(n_out):
        result[i] = rounded(widened(result[i]) + sums[i])


@cfunc("void(int64)", fastmath=_FAST)
def add_share(given):  # type: ignore[no-untyped-def]
    """What one thread of a team does of the call that `given`, the address of a Call, tells of."""
    call = carray(longs(given), (_CALL,))
    rows, length, n_in, n_out = call[0], call[1], call[2], call[3]
    all_x = carray(halves(call[4]), (rows * length, n_in))
    all_y = carray(halves(call[5]), (rows * length, n_out))
    bias = carray(halves(call[6]), (n_out if call[6] else 0,))
    rank_of = carray(longs(call[7]), (rows,))
    weights_of, gains_of = carray(longs(call[8]), (rows,)), carray(longs(call[9]), (rows,))
    offset, gain_offset = call[10], call[11]
    threads, own = _omp_get_num_threads(), _omp_get_thread_num()
    tokens = rows * length
    for place in range(own * tokens // threads, (own + 1) * tokens // threads):
        row = place // length
        rank = rank_of[row]
        if rank:
            weights = weights_of[row] + 2 * offset * rank
            gains = gains_of[row]
            if gains:
                gains += 4 * gain_offset
            _add_all(all_x[place], all_y[place], bias, rank, weights, gains)


def add_rows(threads: int, call: Any) -> None:
    """Run a Call by so many threads."""
    _parallel(add_share.address, ctypes.addressof(call), threads, 0)
