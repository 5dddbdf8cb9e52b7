"""The four row types, and the problems a dataset can have."""

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

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


class Conversation(Record):
    """What an assistant said and is to learn to say.

    The first `context` messages are never learned, whoever said them: that is how a row written as
    prompt and completion learns its completion alone. In a row of `messages` it is 0.
    """

    messages: tuple[Message, ...]
    context: int = 0


class Preference(Record):
    """Two answers to one prompt, the better one first.

    `margin` says how much better: by how much a reward model is to score it above the other
    (Touvron et al. 2023, https://arxiv.org/abs/2307.09288, equation 2). Other methods ignore it.
    """

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    margin: float = 0.0


class Prompt(Record):
    """A prompt alone; the model's own answers are what is learned from.

    `item_json` is an object that a grader may read, such as a reference answer; as JSON, so that
    rows can be compared and hashed.
    """

    prompt: tuple[Message, ...]
    item_json: str = "{}"

    @property
    def item(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.item_json)
        return value


class Rating(Record):
    """An answer that was liked (label true) or not."""

    prompt: tuple[Message, ...]
    completion: tuple[Message, ...]
    label: bool


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
