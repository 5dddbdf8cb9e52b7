"""Formulas over scores, as OpenAI's `calculate_output`: + - * / ^ ( ) and a few functions.

Python's parser reads them and a table of operators computes them, in floating point throughout, so
that nothing in them can run long, grow large or reach anything but numbers.
"""

import ast
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache

from engine.graders.limits import MAX_FORMULA, MAX_FORMULA_DEPTH, MAX_SCORE

OPERATORS: dict[type[ast.AST], Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: math.pow,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
FUNCTIONS: dict[str, tuple[Callable[..., float], int, int]] = {  # with fewest and most arguments
    "min": (min, 1, 32),
    "max": (max, 1, 32),
    "abs": (abs, 1, 1),
    "floor": (lambda x: float(math.floor(x)), 1, 1),
    "ceil": (lambda x: float(math.ceil(x)), 1, 1),
    "exp": (math.exp, 1, 1),
    "sqrt": (math.sqrt, 1, 1),
    "log": (math.log, 1, 1),
}


def names_in(formula: str) -> tuple[str, ...]:
    """The names a formula needs values for, sorted. Raises ValueError when it is no formula."""
    return tuple(sorted(set(_names(_parsed(formula)))))


def evaluate(formula: str, values: Mapping[str, float]) -> float:
    """A finite number of at most 1e9 in size. Raises ValueError with the reason."""
    try:
        result = _value(_parsed(formula), values)
    except ZeroDivisionError:
        raise ValueError("it divides by zero; guard it, as in a / max(b, 0.001)") from None
    except OverflowError:
        raise ValueError("a number in it grows beyond all bounds") from None
    except KeyError as error:
        raise ValueError(f"there is no value for {error}") from None
    if not abs(result) <= MAX_SCORE:
        raise ValueError(f"its result {result} is not between ±{MAX_SCORE:.0e}")
    return result


@lru_cache(maxsize=256)
def _parsed(formula: str) -> ast.expr:
    """The checked tree. Raises ValueError."""
    if len(formula) > MAX_FORMULA:
        raise ValueError(f"it is above {MAX_FORMULA} characters; shorten it")
    if not formula.isascii():
        raise ValueError("it has signs in it that are not ASCII")
    source = formula.strip().replace("^", "**")
    try:
        tree = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError("it is no formula; write, for example, 0.7 * a + 0.3 * b") from None
    _check(tree, source, 0)
    return tree


def _check(node: ast.expr, source: str, depth: int) -> None:
    if depth > MAX_FORMULA_DEPTH:
        raise ValueError(f"it is nested above {MAX_FORMULA_DEPTH} deep; simplify it")
    match node:
        case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
            _number(node)
        case ast.Name():
            pass
        case ast.BinOp() | ast.UnaryOp() if type(node.op) in OPERATORS:
            pass
        case ast.Call(func=ast.Name(id=name), keywords=[]) if name in FUNCTIONS:
            _, fewest, most = FUNCTIONS[name]
            if not fewest <= len(node.args) <= most:
                raise ValueError(f"{name} does not take {len(node.args)} arguments")
        case _:
            known = "numbers, names of graders, + - * / ^ and " + ", ".join(FUNCTIONS)
            raise ValueError(
                f"{source[node.col_offset :][:40]!r} is not allowed; known are {known}"
            )
    for inner in _inner(node):
        _check(inner, source, depth + 1)


def _inner(node: ast.expr) -> list[ast.expr]:
    match node:
        case ast.BinOp(left=left, right=right):
            return [left, right]
        case ast.UnaryOp(operand=operand):
            return [operand]
        case ast.Call(args=args):
            return args
        case _:
            return []


def _names(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Name):
        yield node.id
    for inner in _inner(node):
        yield from _names(inner)


def _number(node: ast.Constant) -> float:
    try:
        value = float(node.value)  # type: ignore[arg-type]
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise ValueError("a number in it is too large")
    return value


def _value(node: ast.expr, values: Mapping[str, float]) -> float:
    match node:
        case ast.Constant():
            return _number(node)
        case ast.Name(id=name):
            return values[name]
        case ast.Call(func=ast.Name(id=name)):
            return FUNCTIONS[name][0](*(_value(inner, values) for inner in node.args))
        case ast.BinOp() | ast.UnaryOp():
            return OPERATORS[type(node.op)](*(_value(inner, values) for inner in _inner(node)))
        case _:
            raise AssertionError("a checked formula has nothing else")
