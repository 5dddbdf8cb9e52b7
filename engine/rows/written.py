"""Written: a row as its author spelt it, before it is one of the four row types."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict

from engine.rows.model import Message, Row


class Fault(NamedTuple):
    """A problem that does not know its line yet."""

    field: str | None
    message: str


class Written(BaseModel):
    """A row as its author spelt it.

    `learns`: its `messages` are learned from. `any_keys`: its objects may have many keys.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    learns: ClassVar[bool] = False
    any_keys: ClassVar[bool] = False

    @abstractmethod
    def row(self) -> Row:
        """The row that is meant."""

    @abstractmethod
    def faults(self) -> list[Fault]:
        """What the types cannot say; empty for a good row."""

    def spoken(self) -> Iterator[tuple[str, str | tuple[Message, ...]]]:
        """Its texts and its messages, by field."""
        for name, value in self:
            if isinstance(value, str | tuple):
                yield name, value


def is_blank(text: str) -> bool:
    return not text or text.isspace()


def texts(written: Written) -> Iterator[tuple[str, str]]:
    """Every text of a row with the field it stands in."""
    for name, value in written.spoken():
        if isinstance(value, str):
            yield name, value
        else:
            for i, message in enumerate(value):
                yield f"{name}[{i}].content", message.content


def count_messages(written: Written) -> int:
    return sum(len(value) for _, value in written.spoken() if isinstance(value, tuple))


def roles_of(messages: Any) -> list[str]:
    """Who speaks, in a record's field or a row's; empty where those are no messages."""
    if not isinstance(messages, list | tuple):
        return []
    roles = [m.get("role") if isinstance(m, dict) else getattr(m, "role", None) for m in messages]
    return [role for role in roles if isinstance(role, str)]
