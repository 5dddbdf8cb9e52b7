"""length: a text is neither too short nor too long."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from engine.graders.grades import Grade, GraderProblem, verdict
from engine.graders.scene import GraderSpec, Scene
from engine.graders.templates import OUTPUT, Template, problems_of


class Length(GraderSpec):
    """Scores 1 when `minimum` <= length <= `maximum`, else 0.

    Characters are Unicode code points; words are what stands between white space.
    """

    type: Literal["length"] = "length"
    input: Template = OUTPUT
    unit: Literal["characters", "words"] = "characters"
    minimum: int | None = Field(None, ge=0)
    maximum: int | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _bounds_something(self) -> "Length":
        if self.minimum is None and self.maximum is None:
            raise ValueError("give `minimum`, `maximum` or both")
        if self.maximum is not None and (self.minimum or 0) > self.maximum:
            raise ValueError("`minimum` is above `maximum`, so that nothing passes")
        return self

    def problems(self) -> Iterator[GraderProblem]:
        yield from problems_of("input", self.input)

    def grade(self, scene: Scene) -> Grade:
        text = scene.text(self.input)
        length = len(text) if self.unit == "characters" else len(text.split())
        return verdict(
            (self.minimum is None or length >= self.minimum)
            and (self.maximum is None or length <= self.maximum)
        )
