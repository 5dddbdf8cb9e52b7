"""json_schema: a text is JSON and satisfies a schema."""

from collections.abc import Iterator
from typing import Literal

from pydantic import JsonValue

from engine.graders import schemas
from engine.graders.grades import Grade, GraderProblem, verdict
from engine.graders.sample import strict_json
from engine.graders.scene import GraderSpec, Scene
from engine.graders.templates import OUTPUT, Template, problems_of


class JsonSchema(GraderSpec):
    """Scores 1 when `input` is one JSON value that satisfies `json_schema`, else 0.

    Draft 2020-12 (https://json-schema.org/draft/2020-12) without unevaluated* and dynamic
    references; `$ref` stays inside the schema, `pattern` is RE2's, `format` only annotates.
    """

    type: Literal["json_schema"] = "json_schema"
    input: Template = OUTPUT
    json_schema: dict[str, JsonValue]

    def problems(self) -> Iterator[GraderProblem]:
        yield from problems_of("input", self.input)
        for path, message in schemas.problems_in(self.json_schema):
            field = f"json_schema.{path}".removesuffix(".")
            yield GraderProblem(field=field, code="schema_invalid", message=message)

    def grade(self, scene: Scene) -> Grade:
        try:
            value = strict_json(scene.text(self.input))
        except ValueError:
            return verdict(False)
        return verdict(schemas.satisfied(self.json_schema, value))
