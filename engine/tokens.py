"""What a dataset is to a model: token statistics, and a preview of real tokens with their mask."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import cycle, islice
from typing import Literal

from pydantic import BaseModel, ConfigDict
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from engine.render import Rendered, Renderer, RenderError
from engine.rows import Conversation, Preference, Prompt, Row

SMALLEST_BUCKET = 16

Part = Literal["conversation", "chosen", "rejected", "completion", "prompt"]


class Figures(BaseModel):
    """Frozen, and refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Bucket(Figures):
    """How many rows are at most this long, and longer than the bucket before."""

    up_to: int
    rows: int


class TokenStatistics(Figures):
    """Lengths are in tokens, before truncation; a preference row is as long as its longer answer.

    `truncated` rows are longer than max_length. `empty_mask` rows have nothing left to learn once
    they are cut there. `trained_tokens` carry loss; a first token never does, nothing predicts it.
    """

    rows: int
    tokens: int
    trained_tokens: int
    longest: int
    max_length: int
    truncated: int
    empty_mask: int
    histogram: tuple[Bucket, ...]


class PreviewToken(Figures):
    """`text` is empty for all but the last of the tokens that share a character."""

    id: int
    text: str
    trained: bool


class PreviewRow(Figures):
    """One sequence of a row: row counts from 1, part says which for rows that have several."""

    row: int
    part: Part
    tokens: tuple[PreviewToken, ...]
    truncated: bool


def statistics(rows: Iterable[Row], renderer: Renderer, max_length: int) -> TokenStatistics:
    """Renders every row; raises RenderError with the number of a row the template refuses."""
    lengths: Counter[int] = Counter()
    tokens = trained = truncated = empty = 0
    for _, row, sequences in rendered(rows, renderer, None):
        longest = max(len(sequence.token_ids) for sequence in sequences)
        learned = [sum(sequence.loss_mask[1:max_length]) for sequence in sequences]
        lengths[longest] += 1
        tokens += sum(len(sequence.token_ids) for sequence in sequences)
        trained += sum(learned)
        truncated += longest > max_length
        empty += not all(learned) and not isinstance(row, Prompt)
    return TokenStatistics(
        rows=lengths.total(),
        tokens=tokens,
        trained_tokens=trained,
        longest=max(lengths, default=0),
        max_length=max_length,
        truncated=truncated,
        empty_mask=empty,
        histogram=histogram(lengths),
    )


def preview(
    rows: Iterable[Row], renderer: Renderer, max_length: int, limit: int
) -> tuple[PreviewRow, ...]:
    """The sequences of the first `limit` rows as they will be trained on; raises RenderError."""
    return tuple(
        PreviewRow(
            row=number,
            part=part,
            tokens=tuple(shown(sequence, renderer.tokenizer)),
            truncated=sequence.truncated,
        )
        for number, row, sequences in rendered(islice(rows, limit), renderer, max_length)
        for part, sequence in zip(cycle(parts_of(row)), sequences, strict=False)
    )


def rendered(
    rows: Iterable[Row], renderer: Renderer, max_length: int | None
) -> Iterator[tuple[int, Row, tuple[Rendered, ...]]]:
    for number, row in enumerate(rows, start=1):
        try:
            sequences = renderer.sequences(row, max_length)
        except RenderError as error:
            raise type(error)(f"row {number}: {error}") from None
        yield number, row, sequences


def parts_of(row: Row) -> tuple[Part, ...]:
    if isinstance(row, Preference):
        return ("chosen", "rejected")
    if isinstance(row, Prompt):
        return ("prompt",)
    return ("conversation",) if isinstance(row, Conversation) else ("completion",)


def shown(sequence: Rendered, tokenizer: Tokenizer) -> Iterator[PreviewToken]:
    stream = DecodeStream(skip_special_tokens=False)
    for token_id, trained in zip(sequence.token_ids, sequence.loss_mask, strict=True):
        text = stream.step(tokenizer, token_id) or ""
        yield PreviewToken(id=token_id, text=text, trained=trained)


def histogram(lengths: Counter[int]) -> tuple[Bucket, ...]:
    """Buckets up to 16, 32, 64, ... tokens, from the first that holds a row to the last."""
    buckets: Counter[int] = Counter()
    for length, rows in lengths.items():
        buckets[max(SMALLEST_BUCKET, 1 << (length - 1).bit_length())] += rows
    if not buckets:
        return ()
    edge, last = min(buckets), max(buckets)
    edges = [edge]
    while edges[-1] < last:
        edges.append(edges[-1] * 2)
    return tuple(Bucket(up_to=edge, rows=buckets[edge]) for edge in edges)
