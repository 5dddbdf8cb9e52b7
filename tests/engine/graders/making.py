"""Graders and judges for tests."""

from typing import Any

from pydantic import TypeAdapter

from engine.graders import Grade, Grader, Judge, Question, Sample, Verdict, grade

ADAPTER: TypeAdapter[Grader] = TypeAdapter(Grader)


def grader(type: str, **fields: Any) -> Grader:
    """A grader as it comes in a request."""
    return ADAPTER.validate_python({"type": type, **fields})


def graded(
    made: Grader, text: str, item: dict[str, Any] | None = None, judge: Judge | None = None
) -> Grade:
    return grade(made, Sample(output_text=text), item or {}, judge)


class Parrot:
    """A judge that says one thing, and remembers what it was asked."""

    def __init__(self, says: str | float) -> None:
        self.says, self.asked = says, list[Question]()

    def answer(self, question: Question) -> Verdict:
        self.asked.append(question)
        if isinstance(self.says, str):
            return Verdict(text=self.says)
        return Verdict(score=self.says)


RUBRIC = [{"role": "user", "content": "Rate: {{ sample.output_text }}"}]
CHECKS: dict[str, Any] = {
    "type": "string_check",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "operation": "eq",
}
# One of each kind; the contract and the API's tests run over all of them.
EXAMPLES: dict[str, dict[str, Any]] = {
    "string_check": CHECKS,
    "text_similarity": {
        "type": "text_similarity",
        "input": "{{ sample.output_text }}",
        "reference": "{{ item.answer }}",
        "evaluation_metric": "fuzzy_match",
        "pass_threshold": 0.5,
    },
    "regex": {"type": "regex", "pattern": r"(\d+)", "reference": "{{ item.answer }}"},
    "json_schema": {"type": "json_schema", "json_schema": {"type": "integer"}},
    "length": {"type": "length", "maximum": 3},
    "score_model": {"type": "score_model", "model": "tiny", "input": RUBRIC},
    "label_model": {
        "type": "label_model",
        "model": "tiny",
        "input": RUBRIC,
        "labels": ["good", "bad"],
        "passing_labels": ["good"],
    },
    "multi": {
        "type": "multi",
        "graders": {"right": CHECKS, "short": {"type": "length", "maximum": 3}},
        "calculate_output": "0.8 * right + 0.2 * short",
    },
}
