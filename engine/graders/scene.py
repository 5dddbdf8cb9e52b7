"""What a grader sees while it grades, and what every grader is."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import Field

from engine.frozen import Asked
from engine.graders.grades import Fault, Grade, GraderProblem, GradingFault
from engine.graders.judge import Judge, Question, Verdict
from engine.graders.sample import Sample
from engine.graders.templates import render


@dataclass(frozen=True)
class Scene:
    """A sample, the dataset's row that it answers, and where in the tree of graders this is."""

    sample: Sample
    item: Mapping[str, Any]
    judge: Judge | None = None
    where: str = ""

    def text(self, template: str) -> str:
        """The template's text here. Raises GradingFault."""
        return render(template, self.sample, self.item)

    def inside(self, name: str) -> "Scene":
        """The scene of a part of this grader."""
        return replace(self, where=f"{self.where}.graders.{name}".removeprefix("."))

    def ask(self, question: Question) -> Verdict:
        """Raises GradingFault, also where there is no judge."""
        if self.judge is None:
            text = f"Nothing here can ask the model {question.model!r}; leave this grader out."
            raise GradingFault("model_grader_server_error", text)
        return self.judge.answer(question)


class GraderSpec(Asked):
    """What the graders share. `name` is the client's own; it comes back in the results."""

    name: str = Field("", max_length=256)

    @property
    def lowest(self) -> float:
        """The score of a sample that could not be graded."""
        return 0.0

    def problems(self) -> Iterator[GraderProblem]:
        """What is wrong with the grader, as far as it shows without a sample."""
        raise NotImplementedError

    def questions(self, scene: Scene) -> Iterator[Question]:
        """What it will ask of judges; most ask nothing."""
        yield from ()

    def grade(self, scene: Scene) -> Grade:
        """Raises GradingFault when this sample cannot be scored."""
        raise NotImplementedError


def graded(grader: GraderSpec, scene: Scene) -> Grade:
    """The grade, with what went wrong as its fault."""
    try:
        return grader.grade(scene)
    except GradingFault as fault:
        told = Fault(kind=fault.kind, where=scene.where, message=str(fault))
        return Grade(score=grader.lowest, faults=(told,))


def asked(grader: GraderSpec, scene: Scene) -> Iterator[Question]:
    """The questions, without those that cannot be made: grading tells why."""
    try:
        yield from grader.questions(scene)
    except GradingFault:
        return
