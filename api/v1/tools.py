"""Tools: offered to the model by its chat template, and calls that a client insists on.

A call that is insisted on is kept to the function's parameters by the same grammar as a
`response_format`.
"""

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import Field, JsonValue

from api.envelope import Body, Wire, absent
from api.errors import Invalid

FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
NO_PARAMETERS: dict[str, JsonValue] = {
    "type": "object",
    "properties": {},
    "additionalProperties": False,
}


class FunctionDefinition(Body):
    """A function by name, and a JSON schema of its arguments."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, JsonValue] | None = None
    strict: bool | None = Field(None, description="taken, and of no effect: insist on the call")

    @property
    def schema_of_arguments(self) -> dict[str, JsonValue]:
        return NO_PARAMETERS if self.parameters is None else self.parameters


class Tool(Body):
    """What the model may call."""

    type: Literal["function"]
    function: FunctionDefinition


class FunctionNamed(Body):
    """A function of `tools`."""

    name: FunctionName


class ToolNamed(Body):
    """The one function that is to be called."""

    type: Literal["function"]
    function: FunctionNamed


Tools = Annotated[tuple[Tool, ...], Field(max_length=128)]
ToolChoice = Literal["none", "auto", "required"] | ToolNamed


class ToolCallFunction(Wire):
    """In a stream, a piece of the arguments at a time."""

    name: str | None = Field(None, exclude_if=absent)
    arguments: str


class ToolCall(Wire):
    """A call of the model. `index` is only there in a stream."""

    index: int | None = Field(None, exclude_if=absent)
    id: str | None = Field(None, exclude_if=absent)
    type: Literal["function"] | None = Field(None, exclude_if=absent)
    function: ToolCallFunction


@dataclass(frozen=True)
class Insisted:
    """A call that has to be made: to one function, or (`several`) to one of the model's choice."""

    functions: tuple[FunctionDefinition, ...]
    by_name: bool

    @property
    def several(self) -> bool:
        return len(self.functions) > 1

    @property
    def format(self) -> dict[str, Any]:
        """What the answer is kept to: the arguments, or which function with which."""
        schema: dict[str, Any] = {"anyOf": [_call_schema(each) for each in self.functions]}
        if not self.several:
            schema = self.functions[0].schema_of_arguments
        return {"type": "json_schema", "json_schema": {"name": "call", "schema": schema}}

    def reason(self, finish_reason: str | None) -> str | None:
        """As OpenAI has it: `stop` where the client named the function."""
        return "tool_calls" if finish_reason == "stop" and not self.by_name else finish_reason

    def begun(self) -> ToolCall:
        """The start of a streamed call to the one function."""
        function = ToolCallFunction(name=self.functions[0].name, arguments="")
        return ToolCall(index=0, id=new_call_id(), type="function", function=function)

    def call(self, text: str, index: int | None = None) -> ToolCall:
        """The call that a whole answer is. Cut off by `max_tokens`, its arguments are too."""
        name, arguments = self.functions[0].name, text
        if self.several:
            name, arguments = _read(text)
        function = ToolCallFunction(name=name, arguments=arguments)
        return ToolCall(index=index, id=new_call_id(), type="function", function=function)


def new_call_id() -> str:
    return f"call_{uuid4().hex[:24]}"


def offered(tools: Tools | None, choice: ToolChoice | None) -> list[Any]:
    """The tools for the chat template; none with `tool_choice` none."""
    if not tools or choice == "none":
        return []
    return [tool.model_dump(mode="json", exclude_none=True) for tool in tools]


def insisted(tools: Tools | None, choice: ToolChoice | None) -> Insisted | None:
    """The call that `tool_choice` asks for. Raises Invalid where there is no such tool."""
    if choice in (None, "none", "auto"):
        return None
    functions = tuple(tool.function for tool in tools or ())
    if isinstance(choice, ToolNamed):
        functions = tuple(each for each in functions if each.name == choice.function.name)[:1]
    if not functions:
        raise Invalid("`tool_choice` asks for a tool that `tools` does not have.", param="tools")
    return Insisted(functions, by_name=isinstance(choice, ToolNamed))


def _call_schema(function: FunctionDefinition) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "name": {"const": function.name},
            "arguments": function.schema_of_arguments,
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _read(text: str) -> tuple[str, str]:
    """The name and the arguments of a call to one of several; as they are where they are cut."""
    try:
        call = json.loads(text)
        return call["name"], as_arguments(call["arguments"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return "", text


def as_arguments(said: Any) -> str:
    """As JSON; in ASCII where half of a surrogate pair is in it, which no answer could hold."""
    text = json.dumps(said, ensure_ascii=False)
    return text if text.isascii() or _is_unicode(text) else json.dumps(said)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
