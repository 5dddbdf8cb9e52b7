"""How rows may be written: one wire model a spelling, and the choice between them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field, JsonValue
from pydantic_core import ErrorDetails

from engine.rows import openai
from engine.rows.model import (
    MAX_MARGIN,
    MAX_MESSAGES,
    Conversation,
    Message,
    Preference,
    Prompt,
    Rating,
    Row,
    RowType,
)
from engine.rows.written import Fault, Written, is_blank

Messages = Annotated[tuple[Message, ...], Field(min_length=1, max_length=MAX_MESSAGES)]
Text = str | Messages
Margin = Annotated[float, Field(ge=0, le=MAX_MARGIN, allow_inf_nan=False)]


class WrittenMessages(Written):
    learns: ClassVar[bool] = True

    messages: Messages

    def row(self) -> Row:
        return Conversation(messages=self.messages)

    def faults(self) -> list[Fault]:
        answers = [message.content for message in self.messages if message.role == "assistant"]
        if not answers:
            return [Fault("messages", "has no assistant message, so there is nothing to learn")]
        return blank_answers("messages", self.messages) if any(map(is_blank, answers)) else []


class WrittenCompletion(Written):
    prompt: Text
    completion: Text

    def row(self) -> Row:
        prompt = spoken("user", self.prompt)
        messages = prompt + spoken("assistant", self.completion)
        return Conversation(messages=messages, context=len(prompt))

    def faults(self) -> list[Fault]:
        return prompt_faults(self.prompt) + answer_faults("completion", self.completion)


class WrittenInstruction(Written):
    instruction: str
    input: str | None = None
    output: str

    def row(self) -> Row:
        asked = f"{self.instruction}\n\n{self.input}" if self.input else self.instruction
        messages = spoken("user", asked) + spoken("assistant", self.output)
        return Conversation(messages=messages, context=1)

    def faults(self) -> list[Fault]:
        return answer_faults("output", self.output)


class WrittenPreference(Written):
    prompt: Text
    chosen: Text
    rejected: Text
    margin: Margin | None = None

    def row(self) -> Row:
        return Preference(
            prompt=spoken("user", self.prompt),
            chosen=spoken("assistant", self.chosen),
            rejected=spoken("assistant", self.rejected),
            margin=self.margin or 0.0,
        )

    def faults(self) -> list[Fault]:
        return (
            prompt_faults(self.prompt)
            + answer_faults("chosen", self.chosen)
            + answer_faults("rejected", self.rejected)
        )


class WrittenPrompt(Written):
    prompt: Text
    item: dict[str, JsonValue] | None = None

    def __hash__(self) -> int:
        return hash(self.row())

    def row(self) -> Row:
        item = json.dumps(self.item or {}, sort_keys=True)
        return Prompt(prompt=spoken("user", self.prompt), item_json=item)

    def faults(self) -> list[Fault]:
        if all(is_blank(message.content) for message in spoken("user", self.prompt)):
            return [Fault("prompt", "is blank; write what the model is asked")]
        return prompt_faults(self.prompt) + item_faults(self.item)


class WrittenRating(Written):
    prompt: Text
    completion: Text
    label: bool

    def row(self) -> Row:
        return Rating(
            prompt=spoken("user", self.prompt),
            completion=spoken("assistant", self.completion),
            label=self.label,
        )

    def faults(self) -> list[Fault]:
        return prompt_faults(self.prompt) + answer_faults("completion", self.completion)


def spoken(role: Annotated[str, "user or assistant"], text: Text) -> tuple[Message, ...]:
    """A plain string is one message of the role that speaks there."""
    if isinstance(text, str):
        return (Message.model_validate({"role": role, "content": text}),)
    return text


def blank_answers(name: str, messages: tuple[Message, ...]) -> list[Fault]:
    return [
        Fault(f"{name}[{i}].content", "is blank; an assistant message needs text to learn")
        for i, message in enumerate(messages)
        if message.role == "assistant" and is_blank(message.content)
    ]


def prompt_faults(prompt: Text) -> list[Fault]:
    if isinstance(prompt, str) or prompt[-1].role != "assistant":
        return []
    return [Fault("prompt", "ends with an assistant message; the answer belongs in its own field")]


def answer_faults(name: str, answer: Text) -> list[Fault]:
    if isinstance(answer, str):
        return [Fault(name, "is blank; write the answer")] if is_blank(answer) else []
    if answer[0].role != "assistant":
        said = f"begins with a {answer[0].role} message"
        return [Fault(name, f"{said}; give the assistant's answer alone, without the prompt")]
    return blank_answers(name, answer)


def item_faults(item: dict[str, JsonValue] | None) -> list[Fault]:
    try:
        json.dumps(item, allow_nan=False)
    except ValueError:
        return [Fault("item", "has a number that is not finite; JSON has none")]
    return []


Test = Callable[[Mapping[str, Any]], bool]


def always(record: Mapping[str, Any]) -> bool:
    return True


def is_plain_talk(record: Mapping[str, Any]) -> bool:
    return not openai.is_chat(record["messages"])


@dataclass(frozen=True)
class Spelling:
    """One way to write a row type: the fields it needs, those it allows, and its wire model.

    `suits` says whether a record with these fields is meant so; `decides`, whether it is meant so
    where nothing yet says what the rows of the dataset are.
    """

    row_type: RowType
    model: type[Written]
    required: frozenset[str]
    allowed: frozenset[str]
    keys: tuple[bytes, ...]  # as they stand in JSON
    suits: Test = always
    decides: Test = always
    wording: Callable[[ErrorDetails], str | None] | None = None

    def __str__(self) -> str:
        optional = [
            f'"{name}" (optional)' for name in self.model.model_fields if name in self.extra
        ]
        needed = [f'"{name}"' for name in self.model.model_fields if name in self.required]
        return "{" + ", ".join(needed + optional) + "}"

    @property
    def extra(self) -> frozenset[str]:
        return self.allowed - self.required

    @property
    def listed(self) -> bool:
        """OpenAI's formats are documented by OpenAI."""
        return self.wording is None

    def fits(self, record: Mapping[str, object]) -> bool:
        known = self.model.model_config.get("extra") == "allow" or record.keys() <= self.allowed
        return known and self.required <= record.keys() and self.suits(record)


def _spelling(row_type: RowType, model: type[Written], **more: Any) -> Spelling:
    fields = model.model_fields
    required = frozenset(name for name, field in fields.items() if field.is_required())
    keys = tuple(f'"{name}"'.encode() for name in fields)
    return Spelling(row_type, model, required, frozenset(fields), keys, **more)


def _openai(row_type: RowType, model: type[Written], **more: Any) -> Spelling:
    return _spelling(row_type, model, wording=openai.wording, **more)


SPELLINGS = (
    _spelling("conversation", WrittenMessages, suits=is_plain_talk),
    _spelling("conversation", WrittenCompletion),
    _spelling("conversation", WrittenInstruction),
    _spelling("preference", WrittenPreference),
    _spelling("prompt", WrittenPrompt),
    _spelling("rating", WrittenRating),
    _openai("conversation", openai.WrittenChat),
    _openai("preference", openai.WrittenOutputs),
    _openai("prompt", openai.WrittenReference, decides=openai.is_asked),
)


def accepted(row_type: RowType | None) -> str:
    """The spellings of a row type (of all of them for None), for an error message."""
    kinds = dict.fromkeys(s.row_type for s in SPELLINGS) if row_type is None else [row_type]
    return "; ".join(
        f"a {kind} row is "
        + " or ".join(str(s) for s in SPELLINGS if s.row_type == kind and s.listed)
        for kind in kinds
    )
