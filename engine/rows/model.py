"""The four row types, and the problems a dataset can have."""

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from pydantic_core import from_json

from engine.errors import EngineError

Role = Literal["system", "user", "assistant", "tool"]
RowType = Literal["conversation", "preference", "prompt", "rating"]
DatasetFormat = Literal["jsonl", "csv", "parquet"]

MAX_LINE_BYTES = 1 << 20
MAX_ROWS = 1_000_000
MAX_MESSAGES = 512
MAX_PROBLEMS_SHOWN = 20
MAX_PROBLEMS_COUNTED = 1_000
MAX_MARGIN = 1e6


class Record(BaseModel):
    """Frozen, and refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Message(Record):
    """One turn of a conversation."""

    role: Role
    content: str

    def shown(self) -> dict[str, Any]:
        """What a chat template sees of it."""
        return {"role": self.role, "content": self.content}


class FunctionCall(Record):
    """`arguments` are an object, as JSON."""

    name: str
    arguments: str

    @property
    def has_object(self) -> bool:
        """Whether they are one that can be shown: finite, not too deep, no half of a surrogate."""
        try:
            value = from_json(self.arguments, allow_inf_nan=False)
            json.dumps(value, allow_nan=False)  # 1e999 reads as infinity
        except ValueError:
            return False
        return isinstance(value, dict)


class ToolCall(Record):
    """One call of a tool by the assistant; `id` is what the tool's answer names."""

    id: str | None = None
    function: FunctionCall

    def shown(self) -> dict[str, Any]:
        """Templates write arguments as JSON themselves, so they are given the object."""
        arguments = json.loads(self.function.arguments)
        function = {"name": self.function.name, "arguments": arguments}
        named = {} if self.id is None else {"id": self.id}
        return named | {"type": "function", "function": function}


class RichMessage(Message):
    """A message that says more: its speaker's name, calls of tools, or which call it answers."""

    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None

    def shown(self) -> dict[str, Any]:
        more: dict[str, Any] = {}
        if self.name is not None:
            more["name"] = self.name
        if self.tool_calls:
            more["tool_calls"] = [call.shown() for call in self.tool_calls]
        if self.tool_call_id is not None:
            more["tool_call_id"] = self.tool_call_id
        return super().shown() | more


class Conversation(Record):
    """What an assistant said and is to learn to say.

    The first `context` messages are never learned, whoever said them: that is how a row written as
    prompt and completion learns its completion alone. In a row of `messages` it is 0, and those
    with a weight of 0 are `unlearned`, by their places. `tools_json` is the list of the tools that
    the assistant has, as JSON.
    """

    messages: tuple[Message, ...]
    context: int = 0
    unlearned: tuple[int, ...] = ()
    tools_json: str = "[]"

    @property
    def tools(self) -> list[dict[str, Any]]:
        return tools_of(self.tools_json)

    def learned(self) -> list[int]:
        """The places of the messages that are learned."""
        return [
            place
            for place in range(self.context, len(self.messages))
            if self.messages[place].role == "assistant" and place not in self.unlearned
        ]


class Preference(Record):
    """Two answers to one prompt, the better one first.

    `margin` says how much better: by how much a reward model is to score it above the other
    (Touvron et al. 2023, https://arxiv.org/abs/2307.09288, equation 2). Other methods ignore it.
    """

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    margin: float = 0.0
    tools_json: str = "[]"

    @property
    def answers(self) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
        return self.chosen, self.rejected


class Prompt(Record):
    """A prompt alone; the model's own answers are what is learned from.

    `item_json` is an object that a grader may read, such as a reference answer; as JSON, so that
    rows can be compared and hashed.
    """

    prompt: tuple[Message, ...]
    item_json: str = "{}"
    tools_json: str = "[]"

    @property
    def item(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.item_json)
        return value

    @property
    def tools(self) -> list[dict[str, Any]]:
        return tools_of(self.tools_json)


class Rating(Record):
    """An answer that was liked (label true) or not."""

    prompt: tuple[Message, ...]
    completion: tuple[Message, ...]
    label: bool


def tools_of(tools_json: str) -> list[dict[str, Any]]:
    value: list[dict[str, Any]] = json.loads(tools_json)
    return value


Row = Conversation | Preference | Prompt | Rating


class Problem(Record):
    """What is wrong with a dataset, and where.

    `line` counts physical lines from 1 (rows from 1 in Parquet, which has no lines).
    """

    line: int
    field: str | None
    message: str


class DatasetInvalid(EngineError):
    """A dataset that cannot be used: its first problems, at most 20, and how many there are."""

    def __init__(self, problems: tuple[Problem, ...], total: int) -> None:
        self.problems = problems[:MAX_PROBLEMS_SHOWN]
        self.total = total
        first = self.problems[0]
        where = f"line {first.line}" + (f", {first.field}" if first.field else "")
        more = f" (and {total - 1} more)" if total > 1 else ""
        super().__init__(f"{where}: {first.message}{more}")
