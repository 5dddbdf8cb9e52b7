"""What Numba compiles to pack a LoRA; imported where Numba is there."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.extending import intrinsic
from numba.np.numpy_support import carray

from engine.infer.compiled_types import floats, halves, longs, rounded

_LANES = 8
_INDEX, _BYTE_COUNT, _FLOAT, _HALF = ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.IntType(16)
_LOW, _HIGH = [0, 8, 1, 9, 2, 10, 3, 11], [4, 12, 5, 13, 6, 14, 7, 15]


def _of_lanes(kind: Any, values: Any) -> Any:
    return ir.Constant(ir.VectorType(kind, len(values)), values)


def _round_lanes(builder: Any, lanes: Any) -> Any:
    """As `rounded` does, of eight at once."""
    words = builder.bitcast(lanes, ir.VectorType(_INDEX, _LANES))
    sixteen, one, most = (_of_lanes(_INDEX, [n] * _LANES) for n in (16, 1, 0x7FFF))
    odd = builder.and_(builder.lshr(words, sixteen), one)
    near = builder.lshr(builder.add(words, builder.add(odd, most)), sixteen)
    near = builder.trunc(near, ir.VectorType(_HALF, _LANES))
    is_none = builder.fcmp_unordered("uno", lanes, lanes)
    return builder.select(is_none, _of_lanes(_HALF, [0x7FC0] * _LANES), near)


def _turn(stored: Any, convert: Callable[[Any, Any], Any]) -> Any:
    """Transpose 8 x 8 numbers, each times the scaling: a compiler makes no shuffles of a loop.

    source and target are addresses, the strides in bytes.
    """

    def turn(
        _: Any, source: Any, stride: Any, target: Any, target_stride: Any, scaling: Any
    ) -> Any:
        def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
            source, stride, target, target_stride, scaling = arguments
            wide = ir.Constant(ir.VectorType(_FLOAT, _LANES), ir.Undefined)
            wide = builder.insert_element(wide, scaling, ir.Constant(_INDEX, 0))
            wide = builder.shuffle_vector(wide, wide, _of_lanes(_INDEX, [0] * _LANES))

            def at(begin: Any, each: Any, number: int, kind: Any) -> Any:
                place = builder.add(begin, builder.mul(each, ir.Constant(_BYTE_COUNT, number)))
                return builder.inttoptr(place, ir.VectorType(kind, _LANES).as_pointer())

            rows = []
            for number in range(_LANES):
                lanes = builder.load(at(source, stride, number, _FLOAT), align=1)
                rows.append(convert(builder, builder.fmul(lanes, wide)))
            for _ in range(3):  # each doubles how many of a column are side by side
                rows = [
                    builder.shuffle_vector(rows[n // 2], rows[n // 2 + 4], _of_lanes(_INDEX, half))
                    for n, half in enumerate([_LOW, _HIGH] * 4)
                ]
            for number, lanes in enumerate(rows):
                builder.store(lanes, at(target, target_stride, number, stored), align=1)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4, types.float32), generate

    return intrinsic(turn)


def _pack(pointer: Any, itemsize: int, number_of: Any, turn: Any) -> Any:
    """See Packer.pack; table [layers, 6]: where A and B begin, where they go, r, in and out."""

    @njit("void(int64, int64, int64, int64, int64)", nogil=True)
    def pack(layers, table, scalings, numbers, whole):  # type: ignore[no-untyped-def]
        rows, scaling_of = carray(longs(table), (layers, 6)), carray(floats(scalings), (layers,))
        for layer in range(layers):
            rank, n_in, n_out = rows[layer, 3], rows[layer, 4], rows[layer, 5]
            a, b = numbers + 4 * rows[layer, 0], numbers + 4 * rows[layer, 1]
            begin, each = whole + itemsize * rows[layer, 2], n_in + n_out
            lora_a, lora_b = carray(floats(a), (rank, n_in)), carray(floats(b), (n_out, rank))
            packed = carray(pointer(begin), (rank, each))
            scaling = scaling_of[layer]
            for k in range(rank):
                given, row = lora_a[k], packed[k]
                for i in range(n_in):
                    row[i] = number_of(given[i])
            ranks, outputs = rank - rank % 8, n_out - n_out % 8  # what goes by eights
            for i in range(0, outputs, 8):
                for k in range(0, ranks, 8):
                    place = begin + itemsize * (k * each + n_in + i)
                    turn(b + 4 * (i * rank + k), 4 * rank, place, itemsize * each, scaling)
            for k in range(rank):
                row = packed[k]
                for i in range(outputs if k < ranks else 0, n_out):
                    row[n_in + i] = number_of(scaling * lora_b[i, k])

    return pack


@njit
def _same(number):  # type: ignore[no-untyped-def]
    return number


@njit
def _nearest(number):  # type: ignore[no-untyped-def]
    return rounded(number)


pack_halves = _pack(halves, 2, _nearest, _turn(_HALF, _round_lanes))
pack_floats = _pack(floats, 4, _same, _turn(_FLOAT, lambda _, lanes: lanes))
