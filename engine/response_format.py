"""What a client may say of an answer's format, in OpenAI's shape. Torch-free."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator
from pydantic_core import PydanticCustomError

_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, serialize_by_alias=True)


class JsonSchemaFormat(BaseModel):
    """A JSON schema with a name. The answer satisfies it whatever `strict` says."""

    model_config = _STRICT

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = Field(None, max_length=4096)
    schema_: dict[str, JsonValue] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """Text as it comes, any JSON object, or JSON that satisfies a schema."""

    model_config = _STRICT

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _has_a_schema_where_it_is_needed(self) -> Self:
        if (self.json_schema is not None) != (self.type == "json_schema"):
            raise PydanticCustomError(
                "json_schema", "give `json_schema` with type json_schema, and with no other"
            )
        return self
