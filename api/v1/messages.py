"""The messages of a chat, in OpenAI's shapes, and as chat templates read them."""

from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from api.envelope import Body
from api.errors import Invalid
from api.v1.sampling import Unheeded, refused
from engine.rows import FunctionCall, Message, RichMessage, Role, ToolCall

MAX_MESSAGES = 512


class Part(Body):
    """One of several texts of a message; they are joined as they are."""

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
    def words(self) -> str | None:
        if self.content is None or isinstance(self.content, str):
            return self.refusal if self.content is None else self.content
        return "".join(part.words or "" for part in self.content)


def turns_of(messages: tuple[ChatMessage, ...]) -> list[Message]:
    """As chat templates read them. Raises Invalid where a message says nothing, or nonsense."""
    return [_turn(message, f"messages.{i}") for i, message in enumerate(messages)]


def _turn(message: ChatMessage, where: str) -> Message:
    text = message.words
    if text is None and not message.tool_calls:
        raise Invalid("A message needs a `content`; give a text.", param=f"{where}.content")
    role: Role = "system" if message.role == "developer" else message.role
    if not message.tool_calls and message.name is None and message.tool_call_id is None:
        return Message(role=role, content=text or "")
    return RichMessage(
        role=role,
        content=text or "",
        name=message.name,
        tool_calls=tuple(_call(call, where) for call in message.tool_calls or ()),
        tool_call_id=message.tool_call_id,
    )


def _call(call: MessageToolCall, where: str) -> ToolCall:
    function = FunctionCall(name=call.function.name, arguments=call.function.arguments)
    if not function.has_object:
        raise Invalid(
            f"The arguments of tool call {call.id!r} are not a JSON object.",
            param=f"{where}.tool_calls",
        )
    return ToolCall(id=call.id, function=function)
