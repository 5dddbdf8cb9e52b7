"""A message of OpenAI's chats: text or text parts, weights, calls of tools and their answers."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from engine.rows.model import FunctionCall, Message, RichMessage, Role, ToolCall
from engine.rows.written import Fault, is_blank

CHAT_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",  # the newer name of the same
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",  # the older name of the same
}


class Wire(BaseModel):
    """Frozen, strict, and refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TextPart(Wire):
    type: Literal["text"]
    text: str


class WrittenCall(Wire):
    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(Wire):
    """As requests have it. What only answers have is taken where it is null."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Annotated[str | tuple[TextPart, ...], Field(union_mode="left_to_right")] | None = None
    name: str | None = None
    tool_calls: tuple[WrittenCall, ...] | None = None
    tool_call_id: str | None = None
    function_call: FunctionCall | None = None
    refusal: None = None
    audio: None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, tuple):
            return "".join(part.text for part in self.content)
        return self.content or ""

    @property
    def calls(self) -> tuple[FunctionCall, ...]:
        made = tuple(call.function for call in self.tool_calls or ())
        return made if self.function_call is None else (*made, self.function_call)


class WeightedMessage(ChatMessage):
    """A message that may be kept from being learned, by a weight of 0."""

    weight: Literal[0, 1] | None = None


def turns(messages: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """The messages as templates know them."""
    return tuple(turn(place, messages) for place in range(len(messages)))


def turn(place: int, messages: Sequence[ChatMessage]) -> Message:
    message = messages[place]
    calls = tuple(ToolCall(id=c.id, function=c.function) for c in message.tool_calls or ())
    if message.function_call is not None:
        calls += (ToolCall(id=f"call_{place}", function=message.function_call),)
    answers = message.tool_call_id
    if message.role == "function":  # it answers the call before it
        answers = f"call_{place - 1}"
    role = CHAT_ROLES[message.role]
    if message.name is None and not calls and answers is None:
        return Message(role=role, content=message.text)
    return RichMessage(
        role=role,
        content=message.text,
        name=message.name,
        tool_calls=calls,
        tool_call_id=answers,
    )


def message_faults(
    name: str, messages: Sequence[ChatMessage], parallel: bool | None
) -> list[Fault]:
    """What is wrong with messages, each by its place."""
    return [
        Fault(f"{name}[{place}].{fault.field}", fault.message)
        for place, message in enumerate(messages)
        for fault in (*role_faults(message), *call_faults(message, parallel))
    ]


def role_faults(message: ChatMessage) -> list[Fault]:
    found = []
    learned = getattr(message, "weight", None) != 0
    if message.role != "assistant":
        found += [
            Fault(field, "belongs to an assistant message")
            for field in ("weight", "tool_calls", "function_call")
            if getattr(message, field, None) is not None
        ]
        if message.content is None:
            found.append(Fault("content", "is missing"))
    elif is_blank(message.text) and not message.calls and learned:
        found.append(Fault("content", "is blank; an assistant message needs text to learn"))
    if message.role == "tool" and message.tool_call_id is None:
        found.append(Fault("tool_call_id", "is missing; it says which call this answers"))
    if message.role != "tool" and message.tool_call_id is not None:
        found.append(Fault("tool_call_id", "belongs to a tool message"))
    if message.role == "function" and message.name is None:
        found.append(Fault("name", "is missing; it says which function answers"))
    return found


def call_faults(message: ChatMessage, parallel: bool | None) -> list[Fault]:
    found = []
    if message.tool_calls == ():
        found.append(Fault("tool_calls", "is empty; give at least one call, or leave it out"))
    if parallel is False and len(message.calls) > 1:
        found.append(Fault("tool_calls", "has several calls, and parallel_tool_calls is false"))
    for place, call in enumerate(message.calls):
        where = f"tool_calls[{place}].function" if message.tool_calls else "function_call"
        if not call.has_object:
            found.append(Fault(f"{where}.arguments", "must be a JSON object, as a string"))
        if is_blank(call.name):
            found.append(Fault(f"{where}.name", "is blank; name the function"))
    return found
