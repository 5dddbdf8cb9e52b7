"""What compiled code knows of memory: addresses, and a bfloat16 as its bits."""

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

_WORD = ir.IntType(32)
_HALVES, _LONGS, _FLOATS = map(types.CPointer, (types.int16, types.int64, types.float32))


def _widen(_: Any, bits: Any) -> Any:
    """A bfloat16, given as its bits, in float32."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        word = builder.zext(arguments[0], _WORD)
        return builder.bitcast(builder.shl(word, ir.Constant(_WORD, 16)), ir.FloatType())

    return types.float32(types.int16), generate


def _round(_: Any, number: Any) -> Any:
    """The bits of the bfloat16 that is nearest to a float32; of two, the even one.

    Not a number stays one, whichever of them it is.
    """

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        word = builder.bitcast(arguments[0], _WORD)
        sixteen, one = ir.Constant(_WORD, 16), ir.Constant(_WORD, 1)
        odd = builder.and_(builder.lshr(word, sixteen), one)
        half = builder.add(odd, ir.Constant(_WORD, 0x7FFF))
        near = builder.trunc(builder.lshr(builder.add(word, half), sixteen), ir.IntType(16))
        is_none = builder.fcmp_unordered("uno", arguments[0], arguments[0])
        return builder.select(is_none, ir.Constant(ir.IntType(16), 0x7FC0), near)

    return types.int16(types.float32), generate


def _address_of(pointer: Any, stored: Any) -> Any:
    def point(_: Any, address: Any) -> Any:
        def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], stored.as_pointer())

        return pointer(types.int64), generate

    return point


widened: Any = intrinsic(_widen)
rounded: Any = intrinsic(_round)
halves: Any = intrinsic(_address_of(_HALVES, ir.IntType(16)))  # bfloat16, as their bits
longs: Any = intrinsic(_address_of(_LONGS, ir.IntType(64)))
floats: Any = intrinsic(_address_of(_FLOATS, ir.FloatType()))
