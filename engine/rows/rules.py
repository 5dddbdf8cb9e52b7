"""What a file must keep to beyond its rows being good: nothing of our own, OpenAI's for its API."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.rows.model import RowType
from engine.rows.written import Fault, Written, roles_of

# https://developers.openai.com/api/docs/guides/supervised-fine-tuning
MIN_EXAMPLES = 10


@dataclass(frozen=True)
class Rules:
    """`min_rows` of a file; `openai`: what OpenAI's own formats ask of a row and mean by it."""

    min_rows: int = 1
    openai: bool = False

    def meant(self, record: Mapping[str, Any]) -> RowType | None:
        """The row type of a record that could be of several: messages to answer are a prompt."""
        roles = roles_of(record.get("messages"))
        return "prompt" if self.openai and roles and "assistant" not in roles else None

    def faults(self, written: Written) -> list[Fault]:
        """What is wrong with a row that is good by itself."""
        said = roles_of(getattr(written, "messages", None))
        if self.openai and written.learns and said and said[-1] != "assistant":
            place = f"messages[{len(said) - 1}].role"
            return [Fault(place, f"is {said[-1]}; the last message must be from the assistant")]
        return []


NATIVE = Rules()
OPENAI = Rules(min_rows=MIN_EXAMPLES, openai=True)
