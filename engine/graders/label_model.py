"""label_model: a judge names one of several labels, and some of them pass."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from engine.graders.asking import label_in, question, turn_problems
from engine.graders.grades import Grade, GraderProblem, GradingFault, verdict
from engine.graders.judge import Question, Sampling, Turns
from engine.graders.limits import MAX_LABELS
from engine.graders.scene import GraderSpec, Scene

Label = Annotated[str, Field(min_length=1, max_length=128)]
Labels = Annotated[tuple[Label, ...], Field(min_length=1, max_length=MAX_LABELS)]


class LabelModel(GraderSpec):
    """Scores 1 when the label that `model` answers with is among `passing_labels`, else 0."""

    type: Literal["label_model"] = "label_model"
    model: str = Field(min_length=1, max_length=256)
    input: Turns
    labels: Labels
    passing_labels: Labels
    sampling_params: Sampling = Sampling()

    @model_validator(mode="after")
    def _fits(self) -> "LabelModel":
        if len({label.casefold() for label in self.labels}) < len(self.labels):
            raise ValueError("`labels` has one twice; case does not count")
        if unknown := set(self.passing_labels) - set(self.labels):
            raise ValueError(f"`passing_labels` has {min(unknown)!r}, which `labels` has not")
        return self

    def problems(self) -> Iterator[GraderProblem]:
        yield from turn_problems(self.input)

    def questions(self, scene: Scene) -> Iterator[Question]:
        how = f"Answer with one of these labels and nothing else: {', '.join(self.labels)}."
        yield question(scene, self.model, self.input, self.sampling_params, how)

    def grade(self, scene: Scene) -> Grade:
        (asked,) = self.questions(scene)
        said = scene.ask(asked)
        if said.text is None:
            text = f"{self.model} is a reward model and names no labels; take a chat model."
            raise GradingFault("model_grader_parse_error", text)
        return verdict(label_in(said.text, self.labels) in self.passing_labels)
