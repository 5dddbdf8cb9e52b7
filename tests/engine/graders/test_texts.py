"""string_check, regex, length and text_similarity."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.graders import check
from engine.graders.limits import MAX_COMPARED
from engine.graders.similarity import METRICS, Metric
from engine.graders.similarity.subsequences import common
from tests.engine.graders.making import graded, grader

CORPUS = Path(__file__).parents[2] / "corpus" / "graders"
OUTPUT = "{{ sample.output_text }}"
KNOWN: list[dict[str, Any]] = json.loads((CORPUS / "similarity.json").read_text())


@pytest.mark.parametrize(
    ("operation", "text", "reference", "score"),
    [
        ("eq", "Paris", "Paris", 1),
        ("eq", "Paris", "paris", 0),
        ("eq", "Paris ", "Paris", 0),
        ("ne", "Paris", "paris", 1),
        ("ne", "Paris", "Paris", 0),
        ("like", "in Paris.", "Paris", 1),
        ("like", "Paris", "in Paris.", 0),
        ("like", "in PARIS.", "Paris", 0),
        ("ilike", "in PARIS.", "Paris", 1),
        ("ilike", "STRASSE", "straße", 1),
    ],
)
def test_texts_are_checked(operation: str, text: str, reference: str, score: float) -> None:
    made = grader("string_check", input=OUTPUT, reference=reference, operation=operation)
    found = graded(made, text)
    assert (found.score, found.passed) == (score, bool(score))


@pytest.mark.parametrize(
    ("fields", "text", "score"),
    [
        ({"pattern": "b+"}, "abba", 1),
        ({"pattern": "b+", "match": "full"}, "abba", 0),
        ({"pattern": "^a.*a$", "match": "full"}, "abba", 1),
        ({"pattern": "B"}, "abba", 0),
        ({"pattern": "B", "ignore_case": True}, "abba", 1),
        ({"pattern": r"is (\d+)", "reference": "{{ item.n }}"}, "it is 12, is 7", 1),
        ({"pattern": r"(?i)IS (\d+)", "reference": "7"}, "it is 12", 0),
        ({"pattern": r"\d+", "reference": "12"}, "it is 12", 1),
        ({"pattern": r"x|(y)", "reference": "y"}, "x", 0),
        ({"pattern": r"\p{Greek}+é"}, "αβé", 1),
        ({"pattern": "a\0b"}, "a\0b", 1),
    ],
)
def test_patterns_are_found(fields: dict[str, Any], text: str, score: float) -> None:
    found = graded(grader("regex", **fields), text, {"n": 12})
    assert (found.score, found.passed) == (score, bool(score))


@pytest.mark.parametrize(
    ("fields", "text", "score"),
    [
        ({"maximum": 3}, "äöü", 1),
        ({"maximum": 3}, "äöü!", 0),
        ({"minimum": 2, "maximum": 2, "unit": "words"}, " two\nwords ", 1),
        ({"minimum": 1, "unit": "words"}, " \n ", 0),
        ({"minimum": 0}, "", 1),
        ({"maximum": 0}, "", 1),
    ],
)
def test_lengths_are_counted(fields: dict[str, Any], text: str, score: float) -> None:
    assert graded(grader("length", **fields), text).score == score


@pytest.mark.parametrize("fields", [{}, {"minimum": 2, "maximum": 1}, {"maximum": -1}])
def test_a_length_that_bounds_nothing_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="length"):
        grader("length", **fields)


@pytest.mark.parametrize("metric", METRICS)
def test_likeness_is_what_other_implementations_measure(metric: Metric) -> None:
    known = [pair for pair in KNOWN if metric in pair]
    assert len(known) >= 20
    for pair in known:
        found = METRICS[metric](pair["input"], pair["reference"])
        assert math.isclose(found, pair[metric], abs_tol=1e-12), pair


@pytest.mark.parametrize("metric", METRICS)
@settings(deadline=None)
@given(text=st.text(max_size=40), other=st.text(max_size=40))
def test_likeness_is_from_0_to_1_and_full_for_the_same(
    metric: Metric, text: str, other: str
) -> None:
    assert 0 <= METRICS[metric](text, other) <= 1
    full = 1.0 if metric != "meteor" else 0.5  # a single match has a chunk of its own
    assert METRICS[metric](text, text) >= full - 1e-12


@settings(deadline=None)
@given(st.text("ab", max_size=12), st.text("abc", max_size=12))
def test_the_common_subsequence_is_the_textbooks(ours: str, theirs: str) -> None:
    row = [0] * (len(theirs) + 1)
    for a in ours:
        before = row[:]
        for j, b in enumerate(theirs):
            row[j + 1] = before[j] + 1 if a == b else max(row[j], before[j + 1])
    assert common(ours, theirs) == row[-1]


def test_a_threshold_decides_what_passes() -> None:
    fields = {"input": OUTPUT, "reference": "abcd", "evaluation_metric": "fuzzy_match"}
    with_it = grader("text_similarity", **fields, pass_threshold=0.75)
    assert [graded(with_it, text).passed for text in ("abcx", "abxy")] == [True, False]
    assert graded(grader("text_similarity", **fields), "abcd").passed is None


def test_cosine_is_refused_with_what_to_take_instead() -> None:
    with pytest.raises(ValueError, match="no embedding model; take fuzzy_match, meteor or rouge_l"):
        grader("text_similarity", input="a", reference="b", evaluation_metric="cosine")


def test_texts_too_long_to_compare_are_a_fault() -> None:
    fields = {"input": OUTPUT, "reference": "a", "evaluation_metric": "bleu"}
    (fault,) = graded(grader("text_similarity", **fields), "a" * (MAX_COMPARED + 1)).faults
    assert fault.message == "32,769 characters are above 32,768; compare a part of them."


@pytest.mark.parametrize("pattern", [r"(?=a)", r"(a)\1", "(a", "a{1001}", "()" * 20])
def test_a_pattern_that_cannot_be_an_automaton_is_a_problem(pattern: str) -> None:
    made = grader("regex", pattern=pattern)
    (problem,) = check(made)
    assert (problem.field, problem.code) == ("pattern", "pattern_invalid")
    assert graded(made, "a").faults
