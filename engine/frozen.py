"""Spec: frozen and without fields that nobody knows. Asked: the same of what clients write."""

from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema

SCALARS = ("int", "float", "bool", "str")


class Spec(BaseModel):
    """A frozen model that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _make_strict(schema: Any) -> None:
    """Every scalar of a model's schema, up to the models inside it."""
    if isinstance(schema, list | tuple):
        for part in schema:
            _make_strict(part)
    elif isinstance(schema, dict):
        if schema.get("type") in SCALARS:
            schema["strict"] = True
        for part in schema.values():
            _make_strict(part)


class Literally(BaseModel):
    """Takes for a number, a boolean or a text only what JSON, and the API's document, call so.

    By itself pydantic also takes "5" and true for a number, and "yes" and 1 for true.
    """

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type[BaseModel], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        schema = handler(source)
        _make_strict(handler.resolve_ref_schema(schema))
        return schema


class Asked(Spec, Literally):
    """What clients write. Models inside it have to be of this kind too."""
