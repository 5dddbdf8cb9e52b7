"""The messages of a chat, in OpenAI's shapes, and as chat templates read them."""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from api.envelope import Body
from api.errors import Invalid
from api.v1.sampling import Unheeded, refused
from engine.render import Renderer

MAX_MESSAGES = 512


class Part(Body):
    """One of several texts of a message; they are joined by line breaks."""

    type: Literal["text", "refusal"]
    text: str | None = None
    refusal: str | None = None
    prompt_cache_breakpoint: Unheeded = None

    @model_validator(mode="after")
    def _is_what_it_says(self) -> Self:
        if self.words is None:
            raise ValueError(f"a part of type {self.type} needs the field {self.type!r}")
        return self

    @property
    def words(self) -> str | None:
        return self.text if self.type == "text" else self.refusal


Parts = Annotated[tuple[Part, ...], Field(max_length=MAX_MESSAGES)]
Content = Annotated[
    Annotated[str, Tag("string")] | Annotated[Parts, Tag("parts")],
    Discriminator(lambda given: "parts" if isinstance(given, list | tuple) else "string"),
]


class CalledFunction(Body):
    """`arguments` is an object, as JSON."""

    name: str
    arguments: str


class MessageToolCall(Body):
    """A call that the assistant has made."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(Body):
    """A turn. `developer` is taken for `system`, which is what chat templates know."""

    role: Literal["developer", "system", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = Field(None, description="for templates that write it")
    refusal: str | None = None
    tool_calls: Annotated[tuple[MessageToolCall, ...], Field(max_length=128)] | None = None
    tool_call_id: str | None = None
    audio: Annotated[None, refused("this server reads text alone")] = None
    function_call: Annotated[None, refused("give `tool_calls`, which replaced it")] = None

    @property
    def text(self) -> str | None:
        if self.content is None or isinstance(self.content, str):
            return self.refusal if self.content is None else self.content
        return "\n".join(part.words or "" for part in self.content)


def turns_of(messages: tuple[ChatMessage, ...], renderer: Renderer) -> list[dict[str, Any]]:
    """As a chat template reads them. Raises Invalid where it would leave something out."""
    return [_turn(message, f"messages.{i}", renderer) for i, message in enumerate(messages)]


def _turn(message: ChatMessage, where: str, renderer: Renderer) -> dict[str, Any]:
    text = message.text
    if text is None and not message.tool_calls:
        raise Invalid("A message needs a `content`; give a text.", param=f"{where}.content")
    turn: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": text or "",
    }
    for field in ("name", "tool_call_id"):
        if (value := getattr(message, field)) is not None:
            turn[field] = value
    if message.tool_calls:
        if not renderer.takes_tool_calls:
            raise Invalid(
                "This model's chat template does not write tool calls; leave `tool_calls` out.",
                param=f"{where}.tool_calls",
            )
        turn["tool_calls"] = [_call(call, where) for call in message.tool_calls]
    return turn


def _call(call: MessageToolCall, where: str) -> dict[str, Any]:
    """Templates write the arguments as JSON themselves, so they are given the object."""
    try:
        arguments = json.loads(call.function.arguments)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise Invalid(
            f"The arguments of tool call {call.id!r} are not a JSON object.",
            param=f"{where}.tool_calls",
        )
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}
