"""JSON Schema's keywords at a price, so that no schema keeps a worker busy.

The jsonschema library applies them; here each application is paid for from a budget of steps, and
the four that would use a backtracking regex or quadratic time are our own.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend

from engine.graders import patterns
from engine.graders.grades import GradingFault
from engine.graders.limits import MAX_SCHEMA_STEPS

Rule = Callable[[Any, Any, Any, Any], Any]
# These look at every element of what they are applied to.
SCANNING = frozenset({"additionalProperties", "contains", "items", "prefixItems", "propertyNames"})
DEEP = frozenset({"const", "enum", "uniqueItems"})
# Their library's code walks references without a bound, or leaves the document.
REFUSED = ("unevaluatedItems", "unevaluatedProperties", "$dynamicRef", "$recursiveRef")
MESSAGE_STEP = 64  # characters of an error's message, which quotes what is wrong

_left: ContextVar[list[int]] = ContextVar("_left")


@contextmanager
def budget(steps: int = MAX_SCHEMA_STEPS) -> Iterator[None]:
    """Rules inside may take so many steps together; the next one raises GradingFault."""
    token = _left.set([steps])
    try:
        yield
    finally:
        _left.reset(token)


def _pay(steps: int) -> None:
    left = _left.get()
    left[0] -= steps
    if left[0] < 0:
        text = f"Schema and text together take above {MAX_SCHEMA_STEPS:,} steps; simplify one."
        raise GradingFault("other_error", text)


def _paid(name: str, rule: Rule) -> Rule:
    def apply(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        _pay(1 + _size(value) + (_size(instance) if name in SCANNING else 0))
        if name in DEEP:
            _pay(_weight(value) + _weight(instance))
        for error in rule(validator, value, instance, schema) or ():
            _pay(len(error.message) // MESSAGE_STEP)
            yield error

    return apply


def _size(value: Any) -> int:
    return len(value) if isinstance(value, dict | list) else 0


def _weight(value: Any) -> int:
    """How many values there are in a value, itself included; as far as the budget reaches."""
    waiting, seen = [value], 0
    while waiting and seen <= MAX_SCHEMA_STEPS:
        seen += 1
        found = waiting.pop()
        waiting += found.values() if isinstance(found, dict) else ()
        waiting += found if isinstance(found, list) else ()
    return seen


def _found(pattern: str, text: str) -> bool:
    _pay(1 + len(text))
    try:
        return patterns.search(pattern, text) is not None
    except ValueError as error:
        raise GradingFault("other_error", f"A pattern of the schema: {error}.") from None


def _pattern(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if isinstance(instance, str) and not _found(value, instance):
        yield ValidationError(f"the text does not match {value!r}")


def _pattern_properties(
    validator: Any, value: Any, instance: Any, schema: Any
) -> Iterator[ValidationError]:
    for pattern, subschema in value.items() if isinstance(instance, dict) else ():
        for name, inner in instance.items():
            if _found(pattern, name):
                yield from validator.descend(inner, subschema, path=name, schema_path=pattern)


def _additional(
    validator: Any, value: Any, instance: Any, schema: Any
) -> Iterator[ValidationError]:
    named, by_pattern = schema.get("properties", {}), schema.get("patternProperties", {})
    for name, inner in instance.items() if isinstance(instance, dict) else ():
        if name not in named and not any(_found(pattern, name) for pattern in by_pattern):
            yield from validator.descend(inner, value, path=name)


def _unique(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if not value or not isinstance(instance, list):
        return
    if len({_key(each) for each in instance}) < len(instance):
        yield ValidationError("two elements are equal")


def _key(value: Any) -> Hashable:
    """Equal for values that JSON Schema takes for equal: 1 is 1.0 and is not true."""
    if isinstance(value, dict):
        return frozenset((name, _key(inner)) for name, inner in value.items())
    if isinstance(value, list):
        return tuple(map(_key, value))
    return ("bool", value) if isinstance(value, bool) else value


def _refused(name: str) -> Rule:
    def refuse(validator: Any, value: Any, instance: Any, schema: Any) -> None:
        raise GradingFault("other_error", f"The schema's `{name}` is not supported here.")

    return refuse


_OURS: dict[str, Rule] = {
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional,
    "uniqueItems": _unique,
}
_THEIRS: dict[str, Rule] = dict(Draft202012Validator.VALIDATORS)

# For the schema of schemas, which is JSON Schema's own and needs every keyword.
OfSchemas: Any = extend(  # type: ignore[no-untyped-call]  # its stub leaves it so
    Draft202012Validator,
    {name: _paid(name, rule) for name, rule in (_THEIRS | _OURS).items()},
)
OfValues: Any = extend(  # type: ignore[no-untyped-call]
    OfSchemas, {name: _refused(name) for name in REFUSED}
)
