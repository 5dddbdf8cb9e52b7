"""What grading gives: a score, and what kept it from being one."""

from typing import Literal

from pydantic import Field

from engine.errors import EngineError
from engine.frozen import Spec

# OpenAI's names for what can go wrong with one sample; a client finds them in `metadata.errors`.
FaultKind = Literal[
    "formula_parse_error",
    "invalid_variable_error",
    "model_grader_parse_error",
    "model_grader_server_error",
    "sample_parse_error",
    "other_error",
]


class Fault(Spec):
    """Why a grader could not score a sample. `where` is its place: "" or "graders.a"."""

    kind: FaultKind
    where: str = ""
    message: str


class GraderProblem(Spec):
    """What is wrong with a grader itself, and at which of its fields."""

    field: str
    code: str
    message: str


class Grade(Spec):
    """A sample's score: finite, in the range that its grader documents.

    `sub_scores` has the parts of a multi grader by their names ("a", and "a.b" for a part of a
    part). A grader that cannot score a sample gives it the lowest of its range, 0 where there is
    no range; with a fault in any part, nothing is passed or failed.
    """

    score: float
    passed: bool | None = None
    sub_scores: dict[str, float] = Field(default_factory=dict)
    faults: tuple[Fault, ...] = ()


class GradingFault(EngineError):
    """Raised by a grader that cannot score this sample; `grade` turns it into a Fault."""

    def __init__(self, kind: FaultKind, message: str) -> None:
        super().__init__(message)
        self.kind: FaultKind = kind


def verdict(passed: bool) -> Grade:
    """The grade of a yes or no: 1 or 0."""
    return Grade(score=float(passed), passed=passed)


def measured(score: float, threshold: float | None) -> Grade:
    """The grade of a measure, passed from the threshold on where there is one."""
    return Grade(score=score, passed=None if threshold is None else score >= threshold)
