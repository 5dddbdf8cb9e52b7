"""Templates: text with {{ item.x }} and {{ sample.output_text }}. Looked up, never executed.

What stands between the braces is a path and nothing else: no filters, no expressions, no code. A
value is put in as it is; braces inside it are text.
"""

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from engine.graders.grades import GraderProblem, GradingFault
from engine.graders.limits import MAX_REFERENCES, MAX_TEMPLATE, MAX_TEXT
from engine.graders.sample import Sample

Template = Annotated[str, Field(max_length=MAX_TEMPLATE)]
OUTPUT = "{{ sample.output_text }}"

_REFERENCE = re.compile(r"\s*(item|sample)((?:\.[^\s.\[\]{}()|]+|\[\d{1,9}\])*)\s*")
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+)\]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_KNOWN = "{{ item.NAME }}, {{ sample.output_text }} and {{ sample.output_json.NAME }}"
_NAMES_SHOWN = 10


class Reference(NamedTuple):
    """A path into the item or the sample: `item.a[0]` is ("item", ("a", "0"))."""

    root: str
    steps: tuple[str, ...]

    def __str__(self) -> str:
        return ".".join((self.root, *self.steps))


def problems_of(field: str, template: str) -> Iterator[GraderProblem]:
    """What can be known to be wrong without an item: braces and names."""
    try:
        _parts(template)
    except ValueError as error:
        yield GraderProblem(field=field, code="template_invalid", message=str(error))


def render(template: str, sample: Sample, item: Mapping[str, Any]) -> str:
    """The template's text, of at most MAX_TEXT characters and without lone surrogates.

    Texts go in as they are, everything else as JSON. Raises GradingFault.
    """
    try:
        parts = _parts(template)
    except ValueError as error:
        raise GradingFault("invalid_variable_error", str(error)) from None
    pieces, size = [], 0
    for part in parts:
        pieces.append(part if isinstance(part, str) else _text(_value(part, sample, item)))
        size += len(pieces[-1])
        if size > MAX_TEXT:
            text = f"A text to grade is above {MAX_TEXT:,} characters; grade a part of it."
            raise GradingFault("other_error", text)
    return _SURROGATE.sub("\ufffd", "".join(pieces))


@lru_cache(maxsize=1024)
def _parts(template: str) -> tuple[str | Reference, ...]:
    """Literal texts and references, in order. Raises ValueError with what to write instead."""
    literal, *opened = template.split("{{")
    parts: list[str | Reference] = [literal]
    if len(opened) > MAX_REFERENCES:
        raise ValueError(f"A template has at most {MAX_REFERENCES} references; use fewer.")
    for piece in opened:
        inner, closed, rest = piece.partition("}}")
        if not closed:
            raise ValueError("A {{ is not closed; write }} after the name.")
        parts += [_reference(inner), rest]
    return tuple(parts)


def _reference(text: str) -> Reference:
    shown = "{{" + text[:80] + "}}"
    found = _REFERENCE.fullmatch(text)
    if found is None:
        raise ValueError(f"{shown} is not a name; known are {_KNOWN}, without filters.")
    steps = tuple(name or index for name, index in _STEP.findall(found[2]))
    if found[1] == "sample" and steps != ("output_text",) and steps[:1] != ("output_json",):
        raise ValueError(f"{shown} names nothing: known are {_KNOWN}.")
    return Reference(found[1], steps)


def _value(reference: Reference, sample: Sample, item: Mapping[str, Any]) -> Any:
    value: Any
    if reference.root == "sample":
        value = sample.output_text if reference.steps[0] == "output_text" else sample.output_json
        seen, steps = f"sample.{reference.steps[0]}", reference.steps[1:]
    else:
        value, seen, steps = item, "item", reference.steps
    for step in steps:
        value = _inside(value, step, seen, reference)
        seen = f"{seen}.{step}"
    return value


def _inside(value: Any, step: str, seen: str, reference: Reference) -> Any:
    if isinstance(value, Mapping) and step in value:
        return value[step]
    if isinstance(value, list | tuple) and step.isdecimal() and int(step[:10]) < len(value):
        return value[int(step)]
    text = f"{{{{ {str(reference)[:80]} }}}} names nothing: {_contents(value, seen)}."
    raise GradingFault("invalid_variable_error", text)


def _contents(value: Any, seen: str) -> str:
    if isinstance(value, Mapping):
        names = [repr(str(name)[:40]) for name in list(value)[:_NAMES_SHOWN]]
        more = f" and {len(value) - _NAMES_SHOWN} more" if len(value) > _NAMES_SHOWN else ""
        return f"{seen} has {', '.join(names) or 'nothing in it'}{more}"
    if isinstance(value, list | tuple):
        return f"{seen} is a list of {len(value)}"
    return f"{seen} is a single value"


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise GradingFault("other_error", f"An item's value is not JSON ({error}).") from None
