"""JSON schemas from strangers: draft 2020-12, inside one document, checked before they are used."""

import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema_specifications import REGISTRY
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from engine.graders import patterns
from engine.graders.grades import GradingFault
from engine.graders.limits import MAX_SCHEMA, MAX_SCHEMA_DEPTH, MAX_SUBSCHEMAS
from engine.graders.schema_rules import REFUSED, OfSchemas, OfValues, budget

DIALECT = "https://json-schema.org/draft/2020-12/schema"
MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
SINGLES = (
    "not",
    "if",
    "then",
    "else",
    "items",
    "contains",
    "additionalProperties",
    "propertyNames",
)


def satisfied(schema: dict[str, Any], value: Any) -> bool:
    """Whether a JSON value satisfies a schema. Raises GradingFault when that is not to be told."""
    try:
        validator = _validator(json.dumps(schema))
        with budget():
            return next(validator.iter_errors(value), None) is None
    except (RecursionError, OverflowError, ValueError, Unresolvable) as error:
        text = f"The schema cannot be applied to this text ({type(error).__name__})."
        raise GradingFault("other_error", text) from None


def problems_in(schema: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Where in a schema something is wrong ("" is the schema itself), and what."""
    try:
        size, listed = len(json.dumps(schema)), list(subschemas(schema))
    except (ValueError, RecursionError) as error:
        yield "", f"The schema cannot be read: {error}."
        return
    if size > MAX_SCHEMA:
        yield "", f"The schema is above {MAX_SCHEMA:,} characters; shorten it."
        return
    shape = _shape_problem(schema)
    if shape is not None:
        yield shape
        return
    for path, part in listed:
        yield from _in_part(path, part, listed)


def _shape_problem(schema: dict[str, Any]) -> tuple[str, str] | None:
    """The first place where a schema is none, by the schema of schemas."""
    try:
        with budget():
            meta = OfSchemas(OfSchemas.META_SCHEMA, registry=REGISTRY)
            error = next(meta.iter_errors(schema), None)
    except (GradingFault, RecursionError):
        return "", "The schema is too large or too deep to be checked; simplify it."
    if error is None:
        return None
    message = error.message if len(error.message) < 200 else f"{error.message[:200]}..."
    return ".".join(map(str, error.absolute_path)), f"This is no JSON schema: {message}."


def _in_part(
    path: str, part: dict[str, Any], listed: list[tuple[str, dict[str, Any]]]
) -> Iterator[tuple[str, str]]:
    def at(name: str) -> str:
        return f"{path}.{name}".removeprefix(".")

    for name in REFUSED:
        if name in part:
            yield at(name), f"`{name}` is not supported here; say it without."
    if "$id" in part and path:
        yield at("$id"), "Only the whole schema has an `$id`; remove this one."
    if part.get("$schema", DIALECT).rstrip("#") != DIALECT:
        yield at("$schema"), f"Schemas are of draft 2020-12 here; write {DIALECT}."
    if "$ref" in part and not _resolves(part["$ref"], listed):
        yield at("$ref"), "The reference leads nowhere; it must be one inside the schema, as #/..."
    own = [part["pattern"]] if "pattern" in part else []
    for pattern in (*own, *part.get("patternProperties", ())):
        try:
            patterns.compiled(pattern)
        except ValueError as error:
            place = "pattern" if own and pattern == own[0] else "patternProperties"
            yield at(place), f"This is no pattern: {error}."


def subschemas(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema in a schema with its path, the whole first. Raises ValueError: too many."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), schema)]
    seen = 0
    while waiting:
        path, part = waiting.pop()
        if not isinstance(part, dict):
            continue
        seen += 1
        if seen > MAX_SUBSCHEMAS:
            raise ValueError(f"it has above {MAX_SUBSCHEMAS} schemas in it; simplify it")
        if len(path) > 2 * MAX_SCHEMA_DEPTH:
            raise ValueError(f"it is nested above {MAX_SCHEMA_DEPTH} deep; move parts to $defs")
        yield ".".join(path), part
        waiting += [((*path, *inner), found) for inner, found in _inner(part)]


def _inner(part: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name in MAPS:
        if isinstance(part.get(name), dict):
            yield from (((name, key), found) for key, found in part[name].items())
    for name in LISTS:
        if isinstance(part.get(name), list):
            yield from (((name, str(i)), found) for i, found in enumerate(part[name]))
    yield from (((name,), part[name]) for name in SINGLES if name in part)


def _resolves(reference: str, listed: list[tuple[str, dict[str, Any]]]) -> bool:
    """Whether a reference names one of the schemas that were looked at; the first is the whole."""
    if not reference.startswith("#"):
        return False
    try:
        found = referred(reference, listed[0][1])
    except (Unresolvable, ValueError):  # an index that is no number
        return False
    return isinstance(found, bool) or any(found is part for _, part in listed)


def referred(reference: str, schema: dict[str, Any]) -> Any:
    """What a reference inside a schema leads to. Raises Unresolvable and ValueError."""
    resolver = REGISTRY.resolver_with_root(DRAFT202012.create_resource(schema))
    return resolver.lookup(reference).contents


@lru_cache(maxsize=64)
def _validator(schema: str) -> Draft202012Validator:
    """With the specifications' own registry, which fetches nothing. Raises GradingFault."""
    loaded = json.loads(schema)
    for path, message in problems_in(loaded):
        raise GradingFault("other_error", f"json_schema.{path}: {message}".replace(".:", ":"))
    made: Draft202012Validator = OfValues(loaded, registry=REGISTRY)
    return made
