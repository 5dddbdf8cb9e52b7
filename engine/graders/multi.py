"""multi: several graders, and one score from theirs."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from engine.graders.formula import evaluate, names_in
from engine.graders.grades import Fault, Grade, GraderProblem, measured
from engine.graders.judge import Question
from engine.graders.limits import MAX_DEPTH, MAX_FORMULA, MAX_GRADERS, MAX_QUESTIONS
from engine.graders.scene import GraderSpec, Scene, asked, graded

if TYPE_CHECKING:
    from engine.graders.union import Grader

PartName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]
Weight = Annotated[float, Field(ge=0, le=1e6)]


class Multi(GraderSpec):
    """Scores by `calculate_output`, a formula over the names of `graders`, or by `weights`.

    The formula's result is kept as it is, a finite number of at most 1e9 in size. With `weights`
    the score is the weighted mean, within the range of its parts. A part with a fault counts with
    the lowest score of its range.
    """

    type: Literal["multi"] = "multi"
    graders: Annotated[dict[PartName, "Grader"], Field(max_length=MAX_GRADERS)]
    calculate_output: str | None = Field(None, min_length=1, max_length=MAX_FORMULA)
    weights: dict[PartName, Weight] | None = None
    pass_threshold: float | None = None

    @model_validator(mode="after")
    def _fits(self) -> "Multi":
        if not self.graders:
            raise ValueError("`graders` is empty; give at least one")
        if (self.calculate_output is None) == (self.weights is None):
            raise ValueError("give exactly one of `calculate_output` and `weights`")
        if (depth := _depth(self)) > MAX_DEPTH:
            raise ValueError(f"graders are nested {depth} deep; at most {MAX_DEPTH} are allowed")
        leaves = list(_leaves(self))
        if len(leaves) > MAX_GRADERS:
            raise ValueError(f"{len(leaves)} graders are above {MAX_GRADERS}; use fewer")
        asking = sum(leaf.type in ("score_model", "label_model") for leaf in leaves)
        if asking > MAX_QUESTIONS:
            raise ValueError(f"{asking} graders ask a model; at most {MAX_QUESTIONS} may")
        return self

    def problems(self) -> Iterator[GraderProblem]:
        yield from self._combining_problems()
        for name, part in self.graders.items():
            for problem in part.problems():
                yield problem.model_copy(update={"field": f"graders.{name}.{problem.field}"})

    def questions(self, scene: Scene) -> Iterator[Question]:
        for name, part in self.graders.items():
            yield from asked(part, scene.inside(name))

    def grade(self, scene: Scene) -> Grade:
        grades = {name: graded(part, scene.inside(name)) for name, part in self.graders.items()}
        faults = [fault for grade in grades.values() for fault in grade.faults]
        try:
            score = self._combined({name: grade.score for name, grade in grades.items()})
        except ValueError as error:
            text = f"The scores cannot be combined: {error}."
            faults.append(Fault(kind="formula_parse_error", where=scene.where, message=text))
            score = self.lowest
        subs = {name: grade.score for name, grade in grades.items()} | {
            f"{name}.{inner}": score
            for name, grade in grades.items()
            for inner, score in grade.sub_scores.items()
        }
        told = {"sub_scores": subs, "faults": tuple(faults)}
        return measured(score, None if faults else self.pass_threshold).model_copy(update=told)

    def _combined(self, scores: dict[str, float]) -> float:
        if self.calculate_output is not None:
            return evaluate(self.calculate_output, scores)
        weights = self.weights or {}
        total = math.fsum(weights.values())
        if not total or set(weights) != set(self.graders):
            raise ValueError("the weights do not fit the graders")
        return math.fsum(weight * scores[name] for name, weight in weights.items()) / total

    def _combining_problems(self) -> Iterator[GraderProblem]:
        known = ", ".join(self.graders)
        if self.calculate_output is not None:
            try:
                names = names_in(self.calculate_output)
            except ValueError as error:
                text = f"This cannot be calculated: {error}."
                yield _problem("calculate_output", "formula_invalid", text)
                return
            for name in names:
                if name not in self.graders:
                    text = f"{name!r} is not among the graders: {known}."
                    yield _problem("calculate_output", "formula_invalid", text)
            return
        weights = self.weights or {}
        for name in sorted(set(weights) ^ set(self.graders)):
            text = f"{name!r} needs a grader and a weight; the graders are {known}."
            yield _problem(f"weights.{name}", "weights_invalid", text)
        if not any(weights.values()):
            yield _problem("weights", "weights_invalid", "All weights are 0; raise one.")


def _problem(field: str, code: str, message: str) -> GraderProblem:
    return GraderProblem(field=field, code=code, message=message)


def _depth(grader: GraderSpec) -> int:
    parts = grader.graders.values() if isinstance(grader, Multi) else ()
    return int(isinstance(grader, Multi)) + max(map(_depth, parts), default=0)


def _leaves(grader: "Grader") -> Iterator["Grader"]:
    if not isinstance(grader, Multi):
        yield grader
        return
    for part in grader.graders.values():
        yield from _leaves(part)
