"""The path of a request's field as a client would write it: `peft.r`, not `body.peft.lora.r`."""

from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from engine.graders import Grader
from engine.spec import Method, Peft

OF_A_KEY = "[key]"  # what pydantic adds where a name is wrong, not what stands under it
PLACES = ("body", "query", "path", "header", "cookie")


def _tags(union: Any) -> Iterator[str]:
    """The `type` of every member of a discriminated union."""
    if isinstance(union, type) and issubclass(union, BaseModel):
        yield union.model_fields["type"].default
        return
    for member in get_args(union):
        yield from _tags(member)


TAGS = {
    "method": frozenset(_tags(Method)),
    "peft": frozenset(_tags(Peft)),
    "grader": frozenset(_tags(Grader)),
    "content": frozenset({"string", "parts"}),
    "stop": frozenset({"text", "texts"}),
}
PARTS = "graders"  # each of them has its tag behind its name


def field_path(location: Sequence[int | str], problem: str = "") -> str:
    """Where a validation error is. A path without a field is the place itself."""
    parts = [str(part) for part in location]
    if len(parts) > 1 and parts[0] in PLACES:
        parts = parts[1:]
    kept: list[str] = []
    for place, part in enumerate(parts):
        of = "grader" if parts[max(0, place - 2) : place][:1] == [PARTS] else ""
        before = parts[place - 1] if place else ""
        if part not in TAGS.get(of or before, ()) and part != OF_A_KEY:
            kept.append(part)
    if problem.startswith("union_tag"):
        kept.append("type")
    return ".".join(kept)
