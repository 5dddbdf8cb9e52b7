"""Grader: the union of all kinds. A new one is a file of its own and a line here."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from engine.graders.json_schema import JsonSchema
from engine.graders.label_model import LabelModel
from engine.graders.length import Length
from engine.graders.multi import Multi
from engine.graders.regex import Regex
from engine.graders.score_model import ScoreModel
from engine.graders.string_check import StringCheck
from engine.graders.text_similarity import TextSimilarity


def _no_code(grader: Any) -> Any:
    if isinstance(grader, Mapping) and grader.get("type") == "python":
        raise PydanticCustomError(
            "union_tag_python",
            "python graders are not taken: no code from outside runs in this service; say it with "
            "regex, json_schema, string_check or multi, or ask a model with score_model",
        )
    return grader


Grader = Annotated[
    StringCheck | TextSimilarity | Regex | JsonSchema | Length | ScoreModel | LabelModel | Multi,
    Field(discriminator="type"),
    BeforeValidator(_no_code),
]
Multi.model_rebuild(_types_namespace={"Grader": Grader})
