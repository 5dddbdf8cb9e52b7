"""regex: a text matches a pattern, or a part that the pattern finds is the right one."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from engine.graders import patterns
from engine.graders.grades import Grade, GraderProblem, GradingFault, verdict
from engine.graders.limits import MAX_PATTERN
from engine.graders.scene import GraderSpec, Scene
from engine.graders.templates import OUTPUT, Template, problems_of


class Regex(GraderSpec):
    """Scores 1 when `pattern` (RE2's syntax) is found in `input`, else 0.

    With `reference`, the first group of the first match (the match itself where the pattern has no
    group) must also equal it: "The answer is (\\d+)" against "{{ item.answer }}".
    """

    type: Literal["regex"] = "regex"
    input: Template = OUTPUT
    pattern: str = Field(min_length=1, max_length=MAX_PATTERN)
    match: Literal["search", "full"] = Field("search", description="full: from end to end")
    ignore_case: bool = False
    reference: Template | None = None

    def problems(self) -> Iterator[GraderProblem]:
        yield from problems_of("input", self.input)
        yield from problems_of("reference", self.reference or "")
        try:
            patterns.compiled(self.pattern, self.ignore_case)
        except ValueError as error:
            yield GraderProblem(field="pattern", code="pattern_invalid", message=_told(error))

    def grade(self, scene: Scene) -> Grade:
        text, whole = scene.text(self.input), self.match == "full"
        try:
            found = patterns.search(self.pattern, text, ignore_case=self.ignore_case, whole=whole)
        except ValueError as error:
            raise GradingFault("other_error", _told(error)) from None
        if found is None or self.reference is None:
            return verdict(found is not None)
        return verdict((found[1] if len(found) > 1 else found[0]) == scene.text(self.reference))


def _told(error: ValueError) -> str:
    text = str(error)
    return f"{text[0].upper()}{text[1:]}."
