"""string_check: two texts are equal, or one has the other in it."""

from collections.abc import Iterator
from typing import Literal

from engine.graders.grades import Grade, GraderProblem, verdict
from engine.graders.scene import GraderSpec, Scene
from engine.graders.templates import Template, problems_of


class StringCheck(GraderSpec):
    """Scores 1 or 0. eq, ne: `input` is (not) `reference`; like, ilike: it has `reference` in it.

    ilike compares case-folded (Unicode 3.13), so that "STRASSE" is like "straße". Everything else,
    spaces too, counts.
    """

    type: Literal["string_check"] = "string_check"
    input: Template
    reference: Template
    operation: Literal["eq", "ne", "like", "ilike"]

    def problems(self) -> Iterator[GraderProblem]:
        yield from problems_of("input", self.input)
        yield from problems_of("reference", self.reference)

    def grade(self, scene: Scene) -> Grade:
        text, reference = scene.text(self.input), scene.text(self.reference)
        match self.operation:
            case "eq":
                return verdict(text == reference)
            case "ne":
                return verdict(text != reference)
            case "like":
                return verdict(reference in text)
            case "ilike":
                return verdict(reference.casefold() in text.casefold())
