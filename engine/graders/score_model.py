"""score_model: a number from a judge with a rubric, or from a reward model."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from engine.graders.asking import number_in, question, turn_problems
from engine.graders.grades import Grade, GraderProblem, GradingFault, measured
from engine.graders.judge import Question, Sampling, Turns
from engine.graders.limits import MAX_SCORE
from engine.graders.scene import GraderSpec, Scene

JUDGED = (0.0, 1.0)
ANY = (-MAX_SCORE, MAX_SCORE)
Bound = Annotated[float, Field(ge=-MAX_SCORE, le=MAX_SCORE)]


class ScoreModel(GraderSpec):
    """Scores within `range`, lowest to highest.

    `model` is a base model or an adapter that reads `input` as its rubric and answers with a
    number, from 0 to 1 where no range is given; a number outside it is a fault. Or it is a reward
    adapter, for which `input` is the conversation to score: its scalar is kept within `range`,
    and within ±1e9 where none is given.
    """

    type: Literal["score_model"] = "score_model"
    model: str = Field(min_length=1, max_length=256)
    input: Turns
    range: tuple[Bound, Bound] | None = None
    sampling_params: Sampling = Sampling()
    pass_threshold: float | None = None

    @model_validator(mode="after")
    def _rises(self) -> "ScoreModel":
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError("`range` is [lowest, highest], the first below the second")
        return self

    @property
    def lowest(self) -> float:
        return self.range[0] if self.range else 0.0

    def problems(self) -> Iterator[GraderProblem]:
        yield from turn_problems(self.input)

    def questions(self, scene: Scene) -> Iterator[Question]:
        low, high = self.range or JUDGED
        how = f"Answer with one number from {low:g} to {high:g} and nothing else."
        yield question(scene, self.model, self.input, self.sampling_params, how)

    def grade(self, scene: Scene) -> Grade:
        (asked,) = self.questions(scene)
        said = scene.ask(asked)
        if said.score is not None:
            low, high = self.range or ANY
            return measured(min(max(said.score, low), high), self.pass_threshold)
        score, (low, high) = number_in(said.text), self.range or JUDGED
        if not low <= score <= high:
            text = f"The judge's score {score:g} is not between {low:g} and {high:g}."
            raise GradingFault("model_grader_parse_error", text)
        return measured(score, self.pass_threshold)
