"""Rows as token ids with a loss mask, by the base's render contract."""

from collections.abc import Iterable
from dataclasses import dataclass

from engine.render import Renderer
from engine.rows import Conversation, Row
from engine.train.errors import TrainingFailed

IGNORED = -100  # torch's ignore_index: no loss at this position


@dataclass(frozen=True)
class Example:
    """Token ids, and labels of the same length: the id where it is trained, else IGNORED."""

    input_ids: list[int]
    labels: list[int]

    @property
    def trained_tokens(self) -> int:
        return sum(label != IGNORED for label in self.labels)


@dataclass(frozen=True)
class Tokenized:
    examples: list[Example]
    truncated: int
    empty: int

    def warnings(self, max_length: int) -> list[str]:
        """What a client should know about these rows before it trusts the result."""
        found = []
        if self.truncated:
            found.append(f"{self.truncated} rows were cut at max_length={max_length} tokens.")
        if self.empty:
            found.append(
                f"{self.empty} rows were left out: nothing of the assistant's text is within "
                f"max_length={max_length}, so they have no loss."
            )
        return found


def conversations(rows: Iterable[Row], renderer: Renderer, max_length: int) -> Tokenized:
    """Each conversation as one example. Raises TrainingFailed when no row has a trained token."""
    examples: list[Example] = []
    truncated = empty = 0
    for row in rows:
        if not isinstance(row, Conversation):
            raise TrainingFailed("wrong_row_type", "This method learns from conversation rows.")
        rendered = renderer.conversation(row.messages, max_length=max_length)
        truncated += rendered.truncated
        # The first token is never predicted, so a mask on it alone trains nothing.
        if not any(rendered.loss_mask[1:]):
            empty += 1
            continue
        pairs = zip(rendered.token_ids, rendered.loss_mask, strict=True)
        labels = [token if trained else IGNORED for token, trained in pairs]
        examples.append(Example(list(rendered.token_ids), labels))
    if not examples:
        raise TrainingFailed(
            "nothing_to_train",
            f"No row has a trained token within {max_length} tokens; raise `method.max_length`.",
        )
    return Tokenized(examples, truncated, empty)
