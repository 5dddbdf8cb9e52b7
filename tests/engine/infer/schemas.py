"""Schemas that the tests keep answers to, and the check that an answer is kept to one."""

import json
from datetime import date, datetime
from typing import Any

import jsonschema

NESTED = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
        "customer": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "minLength": 1, "maxLength": 8},
                "mood": {"enum": ["good", "so-so", None]},
            },
            "required": ["name", "mood"],
            "additionalProperties": False,
        },
        "counts": {
            "type": "array",
            "minItems": 1,
            "maxItems": 3,
            "items": {"type": "integer", "minimum": -20, "maximum": 120},
        },
        "paid": {"type": "boolean"},
        "note": {"anyOf": [{"type": "string", "maxLength": 6}, {"type": "null"}]},
    },
    "required": ["id", "customer", "counts", "paid", "note"],
    "additionalProperties": False,
}
UNICODE = {
    "type": "object",
    "properties": {
        "größe": {"enum": ["klein", "größer", "大きい", "🦊", 'a "quote" \\ and\nline']},
        "текст": {"type": "string", "minLength": 2, "maxLength": 6},
        "control": {"const": "\u0001\t\u2028"},
    },
    "required": ["größe", "текст", "control"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "v": {"type": "number", "minimum": 0, "maximum": 10, "multipleOf": 0.5},
                "kids": {"type": "array", "maxItems": 1, "items": {"$ref": "#/$defs/node"}},
            },
            "required": ["v", "kids"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}
UNION = {
    "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}],
    "$defs": {
        kind: {
            "type": "object",
            "properties": {"kind": {"const": kind}, "age": {"type": "integer", "minimum": low}},
            "required": ["kind", "age"],
            "additionalProperties": False,
        }
        for kind, low in (("cat", 0), ("dog", 5))
    },
}
FORMATS = {
    "type": "object",
    "properties": {
        "day": {"type": "string", "format": "date"},
        "at": {"type": "string", "format": "date-time"},
        "key": {"type": "string", "format": "uuid"},
        "host": {"type": "string", "format": "ipv4"},
    },
    "required": ["day", "at", "key", "host"],
    "additionalProperties": False,
}
LISTED = {
    "type": "array",
    "prefixItems": [{"enum": ["x", "y"]}, {"type": ["boolean", "null"]}],
    "items": {"allOf": [{"type": "integer", "minimum": 3}, {"type": "integer", "maximum": 5}]},
    "minItems": 2,
    "maxItems": 4,
}
OPTIONAL = {
    "type": "object",
    "properties": {"a": {"type": "integer", "maximum": 9}, "b": {"type": "null"}},
    "patternProperties": {"^x-[a-z]{1,3}$": {"type": "boolean"}},
    "additionalProperties": False,
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "nested": NESTED,
    "unicode": UNICODE,
    "tree": TREE,
    "union": UNION,
    "formats": FORMATS,
    "listed": LISTED,
    "choice": {"enum": ["yes", "no", "so-so", 7]},
}


_FORMATS = jsonschema.FormatChecker(("uuid", "ipv4"))


@_FORMATS.checks("date", ValueError)
def _is_date(text: object) -> bool:
    """Of any year from 0000 on; the library takes each for a leap year."""
    return date.fromisoformat(f"2000{str(text)[4:]}") is not None


@_FORMATS.checks("date-time", ValueError)
def _is_time(text: object) -> bool:
    day, time = str(text).upper().split("T")
    clock = time.replace(":60", ":59")  # leap seconds
    return _is_date(day) and datetime.fromisoformat(f"2000-01-01T{clock}").tzinfo is not None


def check(text: str, schema: dict[str, Any]) -> Any:
    """The value of a text that must be JSON and satisfy the schema."""
    assert "\ufffd" not in text
    value = json.loads(text)
    jsonschema.Draft202012Validator(schema, format_checker=_FORMATS).validate(value)
    return value


def deep(levels: int) -> dict[str, Any]:
    """An object in an object, so many times."""
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


# What must be refused at once, and a piece of what is said then.
HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "too deep": (deep(80), "nested"),
    "a huge enum": ({"enum": [f"value {i}" for i in range(100_000)]}, "characters"),
    "a long constant": ({"const": "x" * 1_000_000}, "characters"),
    "look-around": ({"type": "string", "pattern": "^(?=.*a)b"}, "pattern"),
    "repeated repetitions": ({"type": "string", "pattern": "^((a{1000}){1000})$"}, "repetition"),
    "nested repetitions": ({"type": "string", "pattern": "((a{0,99}){0,99}){0,99}"}, "repetition"),
    "patterns at once": (
        {"allOf": [{"type": "string", "pattern": f"a{i}.*b{i}"} for i in range(50)]},
        "time or memory",
    ),
    "a large divisor": ({"type": "integer", "multipleOf": 999_983}, "time or memory"),
    "divisors at once": (
        {"allOf": [{"type": "integer", "multipleOf": p} for p in (101, 103, 107, 109, 113, 127)]},
        "patterns",
    ),
    "a product of choices": (
        {
            "allOf": [
                {"anyOf": [{"properties": {f"p{i}{j}": {"type": "null"}}} for j in range(8)]}
                for i in range(6)
            ]
        },
        "too large",
    ),
    "a reference elsewhere": ({"$ref": "http://127.0.0.1:9/schema.json"}, "inside the schema"),
    "a reference to a file": ({"$ref": "file:///etc/passwd"}, "inside the schema"),
    "a circle of references": ({"$ref": "#"}, "no character"),
    "a choice of one": (
        {"oneOf": [{"type": "integer", "minimum": 0}, {"type": "integer", "maximum": 9}]},
        "told apart",
    ),
    "what masks cannot keep": ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    "a circle of choices": (
        {
            "oneOf": [{"$ref": "#/$defs/a"}, {"type": "null"}],
            "$defs": {"a": {"oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]}},
        },
        "written out",
    ),
    "counted names": ({"type": "object", "minProperties": 2}, "minProperties"),
    "an unknown format": ({"type": "string", "format": "credit-card"}, "credit-card"),
    "nothing at all": ({"type": "integer", "minimum": 5, "maximum": 3}, "Unsatisfiable"),
    "no schema": ({"type": "strnig"}, "no JSON schema"),
    "options of the library": ({"type": "integer", "x-guidance": {}}, "remove"),
}
