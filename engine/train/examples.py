"""Rows as token ids with a loss mask, by the base's render contract."""

from collections.abc import Iterable
from dataclasses import dataclass

from engine.render import Rendered, Renderer
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
    """Each conversation as an example; as one a turn where the template needs it.

    Raises TrainingFailed when no row has a trained token.
    """
    examples: list[Example] = []
    truncated = empty = 0
    for row in rows:
        if not isinstance(row, Conversation):
            raise TrainingFailed("wrong_row_type", "This method learns from conversation rows.")
        rendered = renderer.sequences(row, max_length=max_length)
        truncated += any(sequence.truncated for sequence in rendered)
        found = [example for sequence in rendered if (example := _example(sequence))]
        empty += not found
        examples += found
    if not examples:
        raise TrainingFailed(
            "nothing_to_train",
            f"No row has a trained token within {max_length} tokens; raise `method.max_length`.",
        )
    return Tokenized(examples, truncated, empty)


def _example(rendered: Rendered) -> Example | None:
    # The first token is never predicted, so a mask on it alone trains nothing.
    if not any(rendered.loss_mask[1:]):
        return None
    pairs = zip(rendered.token_ids, rendered.loss_mask, strict=True)
    labels = [token if trained else IGNORED for token, trained in pairs]
    return Example(list(rendered.token_ids), labels)
