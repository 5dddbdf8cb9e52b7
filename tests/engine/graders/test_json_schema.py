"""json_schema: the library's verdicts, from rules that have a price."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from engine.graders import check
from engine.graders.schemas import problems_in, satisfied
from tests.engine.graders.making import graded, grader

POINT = {
    "type": "object",
    "properties": {"x": {"type": "number"}, "tag": {"$ref": "#/$defs/tag"}},
    "required": ["x"],
    "additionalProperties": False,
    "$defs": {"tag": {"type": "string", "pattern": "^[a-z]+$"}},
}


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"x": 1}', 1),
        (' {"x": 1.5, "tag": "ab"} ', 1),
        ('{"x": 1, "tag": "aB"}', 0),
        ('{"x": "1"}', 0),
        ('{"tag": "a"}', 0),
        ('{"x": 1, "y": 2}', 0),
        ('{"x": NaN}', 0),
        ('{"x": 1e999}', 0),
        ('{"x": 1}}', 0),
        ('```json\n{"x": 1}\n```', 0),
        ("", 0),
    ],
)
def test_a_text_satisfies_a_schema_or_not(text: str, score: float) -> None:
    found = graded(grader("json_schema", json_schema=POINT), text)
    assert (found.score, found.passed, found.faults) == (score, bool(score), ())


@pytest.mark.parametrize(
    ("schema", "value", "good"),
    [
        ({"uniqueItems": True}, [1, True, "1", None, [1], {"a": 1}], True),
        ({"uniqueItems": True}, [1, 1.0], False),
        ({"uniqueItems": True}, [{"a": 1, "b": 2}, {"b": 2, "a": 1}], False),
        ({"uniqueItems": True}, [[False], [0]], True),
        ({"uniqueItems": False}, [1, 1], True),
        ({"patternProperties": {"^a": {"type": "null"}}}, {"ab": None, "b": 1}, True),
        ({"patternProperties": {"^a": {"type": "null"}}}, {"ab": 1}, False),
        ({"patternProperties": {"^a": {}}, "additionalProperties": False}, {"ab": 1}, True),
        ({"patternProperties": {"^a": {}}, "additionalProperties": False}, {"b": 1}, False),
        ({"additionalProperties": {"type": "string"}, "properties": {"a": {}}}, {"a": 1}, True),
        ({"additionalProperties": {"type": "string"}}, {"b": 1}, False),
        ({"pattern": "b"}, "abc", True),
        ({"pattern": "b"}, 5, True),
        ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"const": 1}}}, 1, True),
        ({"$ref": "#here", "$defs": {"x": {"$anchor": "here", "const": 1}}}, 2, False),
        ({"items": {"$ref": "#"}, "maxItems": 1}, [[[]]], True),
        ({"items": {"$ref": "#"}, "maxItems": 1}, [[[1, 2]]], False),
    ],
)
def test_the_rules_of_our_own_are_those_of_the_draft(
    schema: dict[str, Any], value: Any, good: bool
) -> None:
    assert list(problems_in(schema)) == []
    assert satisfied(schema, value) is good
    assert Draft202012Validator(schema).is_valid(value) is good


SCALARS = (
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, 1.0, "a", "ab", ""])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["a", "b", "ab"]), inner, max_size=3)
    ),
    max_leaves=8,
)
LEAVES = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["object", "array", "string", "integer", "number", "null"]),
        "uniqueItems": st.booleans(),
        "pattern": st.sampled_from(["a", "^b?$"]),
        "minLength": st.integers(0, 2),
        "minimum": st.integers(-2, 2),
        "enum": st.lists(VALUES, min_size=1, max_size=3),
        "const": VALUES,
        "maxItems": st.integers(0, 3),
        "required": st.lists(st.sampled_from(["a", "b"]), unique=True, max_size=2),
    },
)
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "properties": st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2),
            "patternProperties": st.dictionaries(st.sampled_from(["^a", "b"]), inner, max_size=2),
            "additionalProperties": inner | st.booleans(),
            "items": inner | st.booleans(),
            "contains": inner,
            "propertyNames": inner,
            "allOf": st.lists(inner, min_size=1, max_size=2),
            "anyOf": st.lists(inner, min_size=1, max_size=2),
            "oneOf": st.lists(inner, min_size=1, max_size=2),
            "not": inner,
        },
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(schema=SCHEMAS, value=VALUES)
def test_any_verdict_is_the_librarys(schema: dict[str, Any], value: Any) -> None:
    assert list(problems_in(schema)) == []
    assert satisfied(schema, value) is Draft202012Validator(schema).is_valid(value)


@pytest.mark.parametrize(
    ("schema", "field"),
    [
        ({"type": "objct"}, "json_schema.type"),
        ({"properties": {"a": {"minLength": -1}}}, "json_schema.properties.a.minLength"),
        ({"properties": {"a": {"pattern": "(?=x)"}}}, "json_schema.properties.a.pattern"),
        ({"patternProperties": {"(": {}}}, "json_schema.patternProperties"),
        ({"$ref": "http://127.0.0.1:9/x"}, "json_schema.$ref"),
        ({"$ref": "file:///etc/passwd"}, "json_schema.$ref"),
        ({"allOf": [{"$ref": "#/nope"}]}, "json_schema.allOf.0.$ref"),
        ({"$ref": "#/enum/0", "enum": [{"type": "x"}]}, "json_schema.$ref"),
        ({"$ref": "#/allOf/x", "allOf": [{}]}, "json_schema.$ref"),
        ({"unevaluatedProperties": False}, "json_schema.unevaluatedProperties"),
        ({"$dynamicRef": "#a"}, "json_schema.$dynamicRef"),
        ({"items": {"$id": "http://a.example/"}}, "json_schema.items.$id"),
        ({"$schema": "http://json-schema.org/draft-07/schema#"}, "json_schema.$schema"),
        ({"enum": ["x" * 20_000]}, "json_schema"),
        ({"anyOf": [{}] * 300}, "json_schema"),
    ],
)
def test_a_schema_that_cannot_be_used_is_a_problem_at_its_place(
    schema: dict[str, Any], field: str
) -> None:
    made = grader("json_schema", json_schema=schema)
    (problem,) = check(made)
    assert (problem.field, problem.code) == (field, "schema_invalid")
    assert graded(made, "1").faults, "and it grades nothing"


def test_a_schema_nested_too_deeply_is_a_problem() -> None:
    schema: dict[str, Any] = {}
    for _ in range(70):
        schema = {"not": schema}
    (problem,) = check(grader("json_schema", json_schema=json.loads(json.dumps(schema))))
    assert "nested" in problem.message
