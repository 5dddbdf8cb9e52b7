"""OpenAI's formats of fine-tuning files: chats with weights and tools, preferences, references.

As https://developers.openai.com/api/docs/guides/model-optimization has them. Where a file also
says `functions` and `function_call`, which came before `tools` and `tool_calls`, they mean these.
`parallel_tool_calls` is held against the calls of its row, and says no more than they do.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from pydantic_core import ErrorDetails

from engine.rows.chat import ChatMessage, WeightedMessage, message_faults, turns
from engine.rows.model import MAX_MESSAGES, Conversation, Message, Preference, Prompt, Row
from engine.rows.written import Fault, Written, is_blank, roles_of

Chat = Annotated[tuple[ChatMessage, ...], Field(min_length=1, max_length=MAX_MESSAGES)]
Weighted = Annotated[tuple[WeightedMessage, ...], Field(min_length=1, max_length=MAX_MESSAGES)]
Definitions = tuple[dict[str, JsonValue], ...]


class Tooled(BaseModel):
    """What may stand beside messages: the tools that the assistant has."""

    tools: Definitions | None = None
    parallel_tool_calls: bool | None = None

    def tools_json(self) -> str:
        return json.dumps(self.tools or ())

    def tool_faults(self) -> list[Fault]:
        return definition_faults("tools", self.tools or ())


class WrittenChat(Tooled, Written):
    """Learned where an assistant's message has no weight, or a weight of 1."""

    learns: ClassVar[bool] = True
    any_keys: ClassVar[bool] = True

    messages: Weighted
    functions: Definitions | None = None

    def __hash__(self) -> int:
        return hash(self.row())

    def row(self) -> Row:
        skipped = (i for i, message in enumerate(self.messages) if message.weight == 0)
        return Conversation(
            messages=turns(self.messages), unlearned=tuple(skipped), tools_json=self.tools_json()
        )

    def tools_json(self) -> str:
        if self.functions is None:
            return super().tools_json()
        return json.dumps([{"type": "function", "function": one} for one in self.functions])

    def spoken(self) -> Iterator[tuple[str, tuple[Message, ...]]]:
        yield "messages", turns(self.messages)

    def faults(self) -> list[Fault]:
        found = message_faults("messages", self.messages, self.parallel_tool_calls)
        found += self.tool_faults() + function_faults(self.functions or ())
        if self.tools is not None and self.functions is not None:
            found.append(Fault("functions", "is what `tools` were before; give one of the two"))
        answers = [m for m in self.messages if m.role == "assistant"]
        if not answers:
            said = "has no assistant message, so there is nothing to learn"
            return [*found, Fault("messages", said)]
        if all(message.weight == 0 for message in answers):
            said = "has no assistant message with a weight of 1, so there is nothing to learn"
            return [*found, Fault("messages", said)]
        return found


class Asked(Tooled):
    """What two answers are to."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    messages: Chat


class WrittenOutputs(Written):
    any_keys: ClassVar[bool] = True

    input: Asked
    preferred_output: Chat
    non_preferred_output: Chat

    def __hash__(self) -> int:
        return hash(self.row())

    def row(self) -> Row:
        return Preference(
            prompt=turns(self.input.messages),
            chosen=turns(self.preferred_output),
            rejected=turns(self.non_preferred_output),
            tools_json=self.input.tools_json(),
        )

    def spoken(self) -> Iterator[tuple[str, tuple[Message, ...]]]:
        yield "input.messages", turns(self.input.messages)
        yield "preferred_output", turns(self.preferred_output)
        yield "non_preferred_output", turns(self.non_preferred_output)

    def faults(self) -> list[Fault]:
        asked, parallel = self.input.messages, self.input.parallel_tool_calls
        found = message_faults("input.messages", asked, parallel)
        if asked[-1].role == "assistant":
            place = f"input.messages[{len(asked) - 1}].role"
            said = "is assistant; the answers belong in preferred_output and non_preferred_output"
            found.append(Fault(place, said))
        found += [
            Fault(f"input.{field}", said) for field, said in self.input.tool_faults() if field
        ]
        for name in ("preferred_output", "non_preferred_output"):
            answer: Sequence[ChatMessage] = getattr(self, name)
            found += message_faults(name, answer, parallel)
            if {answer[0].role, answer[-1].role} != {"assistant"}:
                said = "must begin and end with an assistant message: it is the answer alone"
                found.append(Fault(name, said))
        return found


class WrittenReference(Tooled, Written):
    """Messages to answer, and beside them whatever graders compare the answer with: `item.*`."""

    model_config = ConfigDict(extra="allow")

    any_keys: ClassVar[bool] = True
    __pydantic_extra__: dict[str, JsonValue]

    messages: Chat

    def __hash__(self) -> int:
        return hash(self.row())

    def row(self) -> Row:
        item = json.dumps(self.__pydantic_extra__, sort_keys=True)
        return Prompt(prompt=turns(self.messages), item_json=item, tools_json=self.tools_json())

    def spoken(self) -> Iterator[tuple[str, tuple[Message, ...]]]:
        yield "messages", turns(self.messages)

    def faults(self) -> list[Fault]:
        found = message_faults("messages", self.messages, self.parallel_tool_calls)
        found += self.tool_faults()
        last = len(self.messages) - 1
        if self.messages[last].role == "assistant":
            said = "is assistant; the last message of a prompt must be from the user"
            found.append(Fault(f"messages[{last}].role", said))
        if all(is_blank(message.text) for message in self.messages):
            found.append(Fault("messages", "are blank; write what the model is asked"))
        return found + infinite(self.__pydantic_extra__)


def definition_faults(name: str, tools: Definitions) -> list[Fault]:
    found = infinite({name: list(tools)})
    for i, tool in enumerate(tools):
        function = tool.get("function")
        if tool.get("type") != "function" or not isinstance(function, dict):
            said = 'must be {"type": "function", "function": {"name", "parameters"}}'
            found.append(Fault(f"{name}[{i}]", said))
        else:
            found += named_faults(f"{name}[{i}].function", function)
    return found


def function_faults(functions: Definitions) -> list[Fault]:
    found = infinite({"functions": list(functions)})
    for i, function in enumerate(functions):
        found += named_faults(f"functions[{i}]", function)
    return found


def named_faults(path: str, function: Mapping[str, JsonValue]) -> list[Fault]:
    name = function.get("name")
    found = []
    if not isinstance(name, str) or is_blank(name):
        found.append(Fault(f"{path}.name", "must be the function's name"))
    if not isinstance(function.get("parameters", {}), dict):
        found.append(Fault(f"{path}.parameters", "must be a JSON schema, an object"))
    return found


def infinite(fields: Mapping[str, JsonValue]) -> list[Fault]:
    found = []
    for name, value in fields.items():
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            found.append(Fault(name, "has a number that is not finite; JSON has none"))
    return found


def is_chat(messages: Any) -> bool:
    """Whether messages, as they came, say more than who says which text."""
    if not isinstance(messages, list | tuple):
        return False
    return any(isinstance(message, dict) and says_more(message) for message in messages)


def says_more(message: Mapping[str, Any]) -> bool:
    more = WeightedMessage.model_fields.keys() - {"role", "content"}
    return (
        bool(more & message.keys())
        or message.get("role") in ("developer", "function")
        or isinstance(message.get("content", ""), list | None)
    )


def is_asked(record: Mapping[str, Any]) -> bool:
    """Whether a record is messages to answer with something to compare the answer with."""
    roles = roles_of(record.get("messages"))
    return bool(roles) and roles[-1] != "assistant"


def wording(detail: ErrorDetails) -> str | None:
    """What is wrong with a field of these formats; None where it is as with all others."""
    place, kind = detail["loc"][-1], detail["type"]
    if kind == "extra_forbidden" and len(detail["loc"]) > 1:
        return "is an unknown field here; see OpenAI's format of fine-tuning files"
    if kind == "none_required":
        return "must be null or left out: only text and calls of functions are learned"
    if place in ("tools", "functions") and kind == "tuple_type":
        return "must be a list of tools"
    if place == "tool_calls" and kind == "tuple_type":
        return "must be a list of calls"
    if kind in ("dict_type", "model_type") and place != "messages":
        return "must be an object"
    if kind == "string_type" and "content" in detail["loc"]:
        return "must be a string or a list of text parts"
    return None
