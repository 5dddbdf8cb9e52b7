"""score_model and label_model: what they ask, and how they read what comes back."""

from typing import Any

import pytest

from engine.graders import Answers, Sample, Verdict, grade, questions
from tests.engine.graders.making import EXAMPLES, RUBRIC, Parrot, graded, grader


def scored(says: str | float, **fields: Any) -> Any:
    made = grader("score_model", **({"model": "tiny", "input": RUBRIC} | fields))
    return graded(made, "text", judge=Parrot(says))


@pytest.mark.parametrize(
    ("says", "score"),
    [
        ("0.7", 0.7),
        (" 1 \n", 1.0),
        ('{"result": 0.25, "steps": []}', 0.25),
        ('{"score": 1}', 1.0),
        ("Score: 0.8.", 0.8),
        ("I give it +0.5", 0.5),
    ],
)
def test_a_number_is_read_from_the_answer(says: str, score: float) -> None:
    found = scored(says, pass_threshold=0.7)
    assert (found.score, found.passed, found.faults) == (score, score >= 0.7, ())


@pytest.mark.parametrize(
    "says",
    ["", "good", "0.2 or 0.3", "7/10", "70%", "NaN", "Infinity", "true", "2", "-1"],
)
def test_an_answer_that_is_no_score_is_a_fault(says: str) -> None:
    found = scored(says)
    assert (found.score, found.passed) == (0.0, None)
    assert [fault.kind for fault in found.faults] == ["model_grader_parse_error"]


def test_a_range_is_said_to_the_judge_and_kept() -> None:
    judge = Parrot("5")
    made = grader("score_model", model="tiny", input=RUBRIC, range=[1, 5])
    assert graded(made, "it", judge=judge).score == 5.0
    (asked,) = judge.asked
    (message,) = asked.messages
    assert message.content == "Rate: it\n\nAnswer with one number from 1 to 5 and nothing else."
    assert (asked.sampling.temperature, asked.where) == (0.0, "")
    assert graded(made, "it", judge=Parrot("x")).score == 1.0, "the lowest of the range"


def test_a_reward_models_scalar_is_kept_within_the_range() -> None:
    assert scored(7.5).score == 7.5
    assert scored(7.5, range=[-2, 2]).score == 2.0
    assert scored(1e300).score == 1e9


def test_messages_keep_their_roles_and_openai_spellings() -> None:
    judge = Parrot("1")
    turns = [
        {"type": "message", "role": "developer", "content": "Be strict."},
        {"role": "user", "content": {"type": "input_text", "text": "{{ item.q }}"}},
        {"role": "assistant", "content": "{{ sample.output_text }}"},
    ]
    made = grader("score_model", model="m", input=turns, sampling_params={"seed": 1})
    graded(made, "it", {"q": "why?"}, judge)
    assert [(m.role, m.content) for m in judge.asked[0].messages] == [
        ("system", "Be strict."),
        ("user", "why?"),
        ("assistant", "it"),
    ]


@pytest.mark.parametrize(
    ("says", "score"),
    [
        ("good", 1.0),
        ("Good.", 1.0),
        ('"good"', 1.0),
        ('{"result": "bad"}', 0.0),
        ("The label is bad", 0.0),
    ],
)
def test_a_label_is_read_from_the_answer(says: str, score: float) -> None:
    found = graded(grader(**EXAMPLES["label_model"]), "x", judge=Parrot(says))
    assert (found.score, found.passed, found.faults) == (score, bool(score), ())


@pytest.mark.parametrize("says", ["", "goods", "good or bad", "neither", 3.0])
def test_an_answer_that_is_no_label_is_a_fault(says: str | float) -> None:
    (fault,) = graded(grader(**EXAMPLES["label_model"]), "x", judge=Parrot(says)).faults
    assert fault.kind == "model_grader_parse_error"


@pytest.mark.parametrize(
    "changes",
    [{"passing_labels": ["fine"]}, {"labels": ["a", "A"], "passing_labels": ["a"]}, {"labels": []}],
)
def test_labels_that_do_not_fit_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="labels"):
        grader(**(EXAMPLES["label_model"] | changes))


@pytest.mark.parametrize("bounds", [[1, 1], [2, 1], [0], [0, 1e12], [float("nan"), 1]])
def test_a_range_that_is_none_is_refused(bounds: list[float]) -> None:
    with pytest.raises(ValueError, match="range"):
        grader("score_model", model="m", input=RUBRIC, range=bounds)


def test_without_a_judge_a_model_cannot_be_asked() -> None:
    (fault,) = graded(grader(**EXAMPLES["score_model"]), "x").faults
    assert fault.kind == "model_grader_server_error"


def test_answers_can_be_had_before_grading() -> None:
    made = grader(
        "multi",
        graders={"s": EXAMPLES["score_model"], "l": EXAMPLES["label_model"]},
        weights={"s": 1, "l": 1},
    )
    asked = questions(made, Sample(output_text="x"), {})
    assert [question.where for question in asked] == ["graders.s", "graders.l"]
    judge = Answers({"graders.s": Verdict(text="0.5"), "graders.l": Verdict(text="good")})
    assert grade(made, Sample(output_text="x"), {}, judge).score == 0.75


def test_too_many_questions_are_refused() -> None:
    parts = {f"a{i}": EXAMPLES["score_model"] for i in range(9)}
    with pytest.raises(ValueError, match="9 graders ask a model; at most 8 may"):
        grader("multi", graders=parts, calculate_output="a0")
