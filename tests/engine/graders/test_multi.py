"""multi: formulas and weights over parts."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.graders import check
from engine.graders.formula import evaluate, names_in
from tests.engine.graders.making import graded, grader

LONG: dict[str, Any] = {"type": "length", "minimum": 3}
SHORT: dict[str, Any] = {"type": "length", "maximum": 5}
PARTS = {"long": LONG, "short": SHORT}


@pytest.mark.parametrize(
    ("formula", "value"),
    [
        ("a", 3.0),
        ("0.7 * a + 0.3 * b", 2.25),
        ("-a + b ^ 2 * 4", -2.0),
        ("2 ^ 3 ^ 2 / 512", 1.0),
        ("2 ** -1", 0.5),
        ("(a - b) / (a + b)", 2.5 / 3.5),
        ("min(a, b, 1) + max(a, b)", 3.5),
        ("floor(b) + ceil(b) + abs(-a) + sqrt(4)", 6.0),
        ("exp(log(a))", 3.0),
        ("  a\n  ", 3.0),
    ],
)
def test_a_formula_is_arithmetic(formula: str, value: float) -> None:
    assert math.isclose(evaluate(formula, {"a": 3.0, "b": 0.5}), value)


def test_the_names_of_a_formula_are_known_beforehand() -> None:
    assert names_in("min(b, a) + a * 2") == ("a", "b")


@pytest.mark.parametrize(
    "formula",
    [
        "",
        "a b",
        "a if b else 1",
        "a and b",
        "a < b",
        "a % b",
        "a // b",
        "a | b",
        "~a",
        "not a",
        "a.real",
        "a[0]",
        "[a]",
        "(a, b)",
        "{a}",
        "'a'",
        "1j",
        "True",
        "None",
        "lambda: a",
        "(a := 1)",
        "[x for x in a]",
        "f'{a}'",
        "__import__('os')",
        "open(a)",
        "min.x(a)",
        "min(a)(b)",
        "min(a, key=b)",
        "min(*a)",
        "sqrt(a, b)",
        "min()",
        "await a",
        "\u2460",
        "a" * 600,
        "1e999",
        "9" * 400,
        "-" * 100 + "a",
        "(" * 240 + "a" + ")" * 240,
        "[" * 240 + "]" * 240,
        "a" + "+a" * 40,
        "a;b",
        "a\0",
    ],
)
def test_what_is_more_than_arithmetic_is_no_formula(formula: str) -> None:
    with pytest.raises(ValueError, match=r"it |not allowed|does not take|too large"):
        names_in(formula)


@pytest.mark.parametrize(
    "formula",
    [
        "9 ^ 9 ^ 9",
        "10 ^ 10",
        "a / 0",
        "0 ^ -1",
        "(0 - 8) ^ 0.5",
        "log(0)",
        "sqrt(-1)",
        "exp(1000)",
        "1e308 * 10",
        "1e308 * 10 - 1e308 * 10",
        "floor(1e308 * 10)",
        "b",
    ],
)
def test_a_result_that_is_no_number_of_sane_size_is_an_error(formula: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        evaluate(formula, {"a": 1.0})


@settings(deadline=None)
@given(st.text("ab019.+-*/^(), minlogexp", max_size=40))
def test_any_text_is_a_finite_number_or_a_value_error(formula: str) -> None:
    try:
        value = evaluate(formula, {"a": 1.0, "b": -0.5})
    except ValueError:
        return
    assert math.isfinite(value)


def test_parts_are_combined_by_a_formula() -> None:
    made = grader("multi", graders=PARTS, calculate_output="0.75 * long + 0.25 * short")
    found = graded(made, "1234567")
    assert (found.score, found.passed) == (0.75, None)
    assert found.sub_scores == {"long": 1.0, "short": 0.0}


def test_parts_are_combined_by_weights() -> None:
    made = grader("multi", graders=PARTS, weights={"long": 3, "short": 1}, pass_threshold=0.8)
    assert [graded(made, text).score for text in ("1", "1234", "123456")] == [0.25, 1.0, 0.75]
    assert [graded(made, text).passed for text in ("1", "1234", "123456")] == [False, True, False]


def test_parts_of_parts_have_paths() -> None:
    inner = {"type": "multi", "graders": PARTS, "weights": {"long": 1, "short": 1}}
    made = grader("multi", graders={"in": inner, "out": SHORT}, weights={"in": 1, "out": 0})
    found = graded(made, "1")
    assert found.score == 0.5
    assert found.sub_scores == {"in": 0.5, "out": 1.0, "in.long": 0.0, "in.short": 1.0}


def test_a_part_that_fails_is_named_and_counts_as_its_lowest() -> None:
    check_it = {
        "type": "string_check",
        "input": "{{ item.no }}",
        "reference": "",
        "operation": "eq",
    }
    inner = {"type": "multi", "graders": {"x": check_it}, "calculate_output": "x"}
    made = grader(
        "multi", graders={"a": inner, "b": SHORT}, calculate_output="a + b", pass_threshold=1
    )
    found = graded(made, "1")
    assert (found.score, found.passed) == (1.0, None)
    assert [fault.where for fault in found.faults] == ["graders.a.graders.x"]


def test_a_formula_without_a_result_is_a_fault() -> None:
    found = graded(grader("multi", graders=PARTS, calculate_output="short / long"), "1")
    (fault,) = found.faults
    assert (found.score, fault.kind) == (0.0, "formula_parse_error")
    assert fault.message == (
        "The scores cannot be combined: it divides by zero; guard it, as in a / max(b, 0.001)."
    )


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        (
            {"calculate_output": "long + shrt"},
            "calculate_output",
            "'shrt' is not among the graders",
        ),
        ({"calculate_output": "long +"}, "calculate_output", "it is no formula"),
        ({"weights": {"long": 1}}, "weights.short", "needs a grader and a weight"),
        ({"weights": {"long": 0, "short": 0}}, "weights", "All weights are 0"),
    ],
)
def test_what_does_not_fit_together_is_a_problem(
    fields: dict[str, Any], field: str, message: str
) -> None:
    made = grader("multi", graders=PARTS, **fields)
    (problem,) = check(made)
    assert problem.field == field
    assert message in problem.message
    assert graded(made, "1").faults


def test_a_problem_of_a_part_has_its_path() -> None:
    made = grader("multi", graders={"a": {"type": "regex", "pattern": "("}}, calculate_output="a")
    assert [problem.field for problem in check(made)] == ["graders.a.pattern"]


def nested(depth: int) -> dict[str, Any]:
    body = SHORT
    for _ in range(depth):
        body = {"type": "multi", "graders": {"a": body}, "calculate_output": "a"}
    return body


def four_times_nine() -> dict[str, Any]:
    nine = nested(1) | {"graders": {f"b{j}": SHORT for j in range(9)}, "calculate_output": "b0"}
    return nested(1) | {"graders": {f"a{i}": nine for i in range(4)}}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (nested(4), "nested 4 deep; at most 3"),
        (nested(120), "nested"),
        ({"type": "multi", "graders": PARTS}, "exactly one of"),
        (nested(1) | {"weights": {"a": 1}}, "exactly one of"),
        (nested(1) | {"graders": {}}, "give at least one"),
        (nested(1) | {"graders": {f"a{i}": SHORT for i in range(33)}}, "at most 32"),
        (four_times_nine(), "36 graders are above 32"),
        (nested(1) | {"graders": {"a b": SHORT}}, "match pattern"),
        (nested(1) | {"calculate_output": "a" * 513}, "at most 512"),
    ],
)
def test_a_tree_that_grows_too_large_is_refused(body: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grader(**body)


def test_a_tree_of_the_largest_depth_is_taken() -> None:
    assert graded(grader(**nested(3)), "1").score == 1.0
