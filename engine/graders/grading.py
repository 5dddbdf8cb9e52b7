"""Grading: what is wrong with a grader, what it asks, and what it gives a sample."""

from collections.abc import Mapping
from typing import Any

from engine.graders.grades import Grade, GraderProblem
from engine.graders.judge import Judge, Question
from engine.graders.sample import Sample
from engine.graders.scene import Scene, asked, graded
from engine.graders.union import Grader


def check(grader: Grader) -> tuple[GraderProblem, ...]:
    """What can be known to be wrong without a sample. Empty for a grader that can be used."""
    return tuple(grader.problems())


def grade(
    grader: Grader, sample: Sample, item: Mapping[str, Any], judge: Judge | None = None
) -> Grade:
    """The sample's grade; `item` is the dataset's row it answers. Never raises for their content.

    Equal arguments give equal grades, as far as the judge gives equal answers.
    """
    return graded(grader, Scene(sample, item, judge))


def questions(grader: Grader, sample: Sample, item: Mapping[str, Any]) -> tuple[Question, ...]:
    """What the grader will ask of a judge, for callers that ask before they grade.

    A part whose question cannot be made asks nothing; its fault is in the grade.
    """
    return tuple(asked(grader, Scene(sample, item)))
