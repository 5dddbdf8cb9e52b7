"""What every grader keeps to, whatever its kind."""

import json
import subprocess
import sys
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.graders import Grader, Sample, check, questions
from tests.engine.graders.making import ADAPTER, EXAMPLES, Parrot, graded

KINDS = sorted(EXAMPLES)
ITEM = {"answer": "7"}


def test_every_kind_has_an_example_here() -> None:
    members = get_args(get_args(Grader)[0])
    assert {member.model_fields["type"].default for member in members} == set(EXAMPLES)


@pytest.mark.parametrize("kind", KINDS)
def test_a_grader_is_without_problems_and_survives_its_own_json(kind: str) -> None:
    made = ADAPTER.validate_python(EXAMPLES[kind])
    again = ADAPTER.validate_json(ADAPTER.dump_json(made))
    assert check(made) == ()
    assert again == made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("says", ["1", "good"])
def test_a_right_sample_scores_1_and_twice_the_same(kind: str, says: str) -> None:
    made = ADAPTER.validate_python(EXAMPLES[kind])
    first, second = (graded(made, "7", ITEM, Parrot(says)) for _ in range(2))
    assert first == second
    assert first.score == 1 or (kind, says) in (("score_model", "good"), ("label_model", "1"))


ANY_TEXT = st.text(max_size=60) | st.sampled_from(["NaN", "1e999", "\ud800", "{{ item.x }}", "\0"])


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(text=ANY_TEXT, answer=ANY_TEXT, says=ANY_TEXT)
def test_any_text_is_scored_from_0_to_1(kind: str, text: str, answer: str, says: str) -> None:
    made = ADAPTER.validate_python(EXAMPLES[kind])
    found = graded(made, text, {"answer": answer}, Parrot(says))
    assert 0 <= found.score <= 1
    json.dumps(found.model_dump(mode="json"), allow_nan=False)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_graders_with_a_model_ask(kind: str) -> None:
    made = ADAPTER.validate_python(EXAMPLES[kind])
    asked = questions(made, Sample(output_text="x"), ITEM)
    assert [question.model for question in asked] == (["tiny"] if "_model" in kind else [])


def test_an_item_that_lacks_a_name_is_told_what_it_has() -> None:
    found = graded(ADAPTER.validate_python(EXAMPLES["string_check"]), "7", {"anser": "7", "q": 1})
    (fault,) = found.faults
    assert (found.score, found.passed, fault.kind) == (0, None, "invalid_variable_error")
    assert fault.message == "{{ item.answer }} names nothing: item has 'anser', 'q'."


def test_unknown_fields_and_kinds_are_refused() -> None:
    for body in ({"type": "length", "maximum": 1, "max": 2}, {"type": "nope"}, {}):
        with pytest.raises(ValueError, match="validation error"):
            ADAPTER.validate_python(body)


@pytest.mark.parametrize("path", [(), ("graders", "a")])
def test_code_is_refused_with_the_reason(path: tuple[str, ...]) -> None:
    body: dict[str, Any] = {"type": "python", "source": "def grade(s, i): return 1.0"}
    if path:
        body = {"type": "multi", "graders": {"a": body}, "calculate_output": "a"}
    with pytest.raises(ValueError, match="no code from outside runs in this service"):
        ADAPTER.validate_python(body)


def test_graders_load_without_torch() -> None:
    heavy = ("torch", "transformers", "peft", "trl", "datasets", "numpy")
    code = f"import engine.graders, sys; print([n for n in {heavy} if n in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
