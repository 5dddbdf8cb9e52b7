"""Sequences that share the forwards of one model: they join and leave between its steps.

Rows [0, decoding) choose a token a step; the rows after them still have a prompt to be fed.
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from itertools import compress, count

import structlog
import torch

from engine.infer.errors import GenerationFailed
from engine.infer.lora import LoraWeights
from engine.infer.metrics import Metrics
from engine.infer.model import ServedModel
from engine.infer.prefixes import BLOCK, Prefixes
from engine.infer.sampling import choose
from engine.infer.sequence import Sequence, are_numbers, diverged
from engine.infer.slots import Feed, LayerShape, SlotCache

log = structlog.get_logger()

SMALLEST_CAPACITY = 64
_AHEAD = 64  # tokens that a row has room for beyond its prompt, before it must ask for more
_SCRATCH = 1
_KEPT = 4  # what prompts begin with is kept in one part in so many of the rows' memory


@dataclass(slots=True, eq=False)
class Row:
    """A sequence, and how many positions of its row are filled."""

    sequence: Sequence
    length: int
    begin: int = 0  # where its prompt begins: after virtual tokens
    order: int = field(default_factory=count().__next__)  # who came first


class Batch:
    """Lives in the engine thread.

    `tokens`: positions that all rows have between them. A row begins with room for its prompt and
    some tokens; when it needs more and there is none, the youngest rows are turned out, for
    `turned_out` to take: they begin anew later, with what they have said so far.
    """

    def __init__(
        self,
        model: ServedModel,
        shapes: Items[LayerShape],
        *,
        tokens: int,
        max_rows: int,
        prefill_chunk: int,
        metrics: Metrics,
    ) -> None:
        self._model, self._chunk, self._metrics = model, prefill_chunk, metrics
        self._cache = SlotCache(
            shapes, tokens=tokens, max_rows=max_rows, dtype=model.dtype, device=model.device
        )
        self._most = min(tokens, model.context_length + _SCRATCH)
        self._roomiest = max(min(tokens // max_rows, self._most), SMALLEST_CAPACITY)
        self._prefixes = Prefixes(tokens // BLOCK // _KEPT)
        self._rows: list[Row] = []
        self._decoding = 0
        self.turned_out: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def sequences(self) -> list[Sequence]:
        return [row.sequence for row in self._rows]

    def takes(self, sequence: Sequence) -> bool:
        """Whether there is ever room for this sequence's adapter."""
        lora = sequence.request.lora
        if lora is None:
            return True
        return lora.packed is not None and self._model.layers.bank.fits(1, lora.rank)

    def join(self, sequence: Sequence) -> bool:
        """Take it in; False where there is no room now."""
        ranks = [lora.rank for lora in (sequence.request.lora, *self._loras()) if lora]
        if not self._model.layers.bank.fits(len(self._rows) + 1, max(ranks, default=0)):
            return False
        virtual = sequence.request.virtual_tokens
        begin = virtual.count if virtual else 0
        need = begin + sequence.waiting + min(sequence.to_come, _AHEAD)
        if not self._make_room(len(self._rows) + 1, need):
            return False
        row = Row(sequence, begin, begin)
        if virtual:
            self._cache.write(len(self._rows), begin, self._model.states_of(virtual))
        self._rows.append(row)
        self._find_beginning(row)
        return True

    def step(self) -> None:
        """Feed a piece of what waits, then choose a token for each row that is ready."""
        for row in [row for row in self._rows if row.sequence.ticket.cancelled]:
            self._remove(row)
        if len(self._rows) > self._decoding:
            self._prefill()
        self._grow()
        if self._decoding:
            self._decode()

    def fail(self, error: Exception) -> None:
        """End every sequence."""
        for sequence in self.sequences:
            sequence.fail(error)
        self._rows.clear()
        self._decoding = 0

    def _loras(self) -> list[LoraWeights | None]:
        return [row.sequence.request.lora for row in self._rows]

    def _find_beginning(self, row: Row) -> None:
        """Copy what is known of its prompt's beginning, which is not fed then."""
        sequence, scope = row.sequence, row.sequence.request.scope
        if scope is None or sequence.scores_prompt:
            return
        found = self._prefixes.find(scope, sequence.to_feed)
        for states in found:
            row.length += BLOCK
            self._cache.write(len(self._rows) - 1, row.length, states)
        sequence.skip(BLOCK * len(found))
        self._metrics.prefix_tokens.inc(BLOCK * len(found))

    def _keep_beginning(self, row: Row) -> None:
        scope, at = row.sequence.request.scope, self._rows.index(row)
        if scope is not None:
            self._prefixes.keep(
                scope,
                row.sequence.request.prompt_ids,
                lambda begin, end: self._cache.read(at, row.begin + begin, row.begin + end),
            )

    def _prefill(self) -> None:
        rows, pieces = self._next_pieces()
        first = self._rows.index(rows[0])
        wanted = [_wanted(row.sequence, piece) for row, piece in zip(rows, pieces, strict=True)]
        logits = self._forward(first, rows, pieces, wanted)
        if logits is None:
            return
        own = logits.split([len(places) for places in wanted])
        for row, piece in zip(rows, pieces, strict=True):
            row.length += len(piece)  # before one of them leaves, and another moves to its place
        good = [all(are_numbers(mine)) for mine in own]
        self._end_diverged(rows, good)
        ready = []
        for row, piece, mine in compress(zip(rows, pieces, own, strict=True), good):
            if not row.sequence.fed(len(piece), mine):
                self._remove(row)
            elif not row.sequence.waiting:
                self._keep_beginning(row)
                ready.append((row, mine[-1]))
        for row, _ in ready:
            self._promote(row)
        if ready:
            self._choose([row for row, _ in ready], torch.stack([last for _, last in ready]))

    def _next_pieces(self) -> tuple[list[Row], list[list[int]]]:
        """The row that has waited longest and those behind it, as far as a step has room.

        A prompt that is scored goes alone: it needs logits for each of its tokens.
        """
        oldest = min(range(self._decoding, len(self._rows)), key=lambda i: self._rows[i].order)
        rows: list[Row] = []
        pieces: list[list[int]] = []
        for row in self._rows[oldest:]:
            piece = row.sequence.piece(self._chunk)
            longest = max(len(piece), *map(len, pieces), 0)
            too_many = (len(rows) + 1) * longest > self._chunk
            if rows and (too_many or row.sequence.scores_prompt or rows[0].sequence.scores_prompt):
                break
            rows.append(row)
            pieces.append(piece)
        return rows, pieces

    def _decode(self) -> None:
        rows = self._rows[: self._decoding]
        pieces = [[row.sequence.last_token] for row in rows]
        self._metrics.batch_rows.observe(len(rows))
        logits = self._forward(0, rows, pieces, [range(1)] * len(rows))
        if logits is None:
            return
        for row in rows:
            row.length += 1
        good = are_numbers(logits)
        self._end_diverged(rows, good)
        if not all(good):
            kept = [i for i, is_number in enumerate(good) if is_number]
            rows, logits = [rows[i] for i in kept], logits[kept]
        if rows:
            self._choose(rows, logits)

    def _choose(self, rows: list[Row], logits: torch.Tensor) -> None:
        tokens = choose(logits, [row.sequence.sampler for row in rows])
        for row, token, own in zip(rows, tokens, logits, strict=True):
            if not row.sequence.take(token, own):
                self._remove(row)

    def _forward(
        self, first: int, rows: list[Row], pieces: list[list[int]], wanted: list[range]
    ) -> torch.Tensor | None:
        """Logits after the wanted tokens of each piece. None: it failed, and so did the rows."""
        feed = self._feed(first, rows, pieces)
        loras = [row.sequence.request.lora for row in rows]
        places = [(i, place) for i, each in enumerate(wanted) for place in each]
        picked = torch.tensor(places, dtype=torch.long, device=self._model.device).view(-1, 2)
        try:
            return self._model.forward_rows(feed, self._cache, loras, picked)
        except Exception:  # the edge of these requests: their failure must not end the others
            log.exception("engine.batch_failed", model=self._model.name, sequences=len(rows))
            for row in rows:
                row.sequence.fail(
                    GenerationFailed("The model failed on this request; see the log.")
                )
            self._wipe(rows)
            return None

    def _feed(self, first: int, rows: list[Row], pieces: list[list[int]]) -> Feed:
        longest, scratch = max(map(len, pieces)), self._cache.capacity - _SCRATCH
        ids, positions = [], []
        for row, piece in zip(rows, pieces, strict=True):
            padding = longest - len(piece)
            ids.append(piece + [0] * padding)
            positions.append([*range(row.length, row.length + len(piece)), *[scratch] * padding])
        ends = [row.length + len(piece) for row, piece in zip(rows, pieces, strict=True)]
        device = self._model.device
        at = torch.tensor(positions, device=device)
        return Feed(
            first=first,
            ids=torch.tensor(ids, device=device),
            positions=at,
            is_padding=at >= torch.tensor(ends, device=device)[:, None],
            seen=max(ends),
        )

    def _grow(self) -> None:
        """Room for the token that each row is about to be fed; the youngest leave where it lacks.

        No row is longer than a context, and one of that length always fits.
        """
        while True:
            longest = max((row.length for row in self._rows[: self._decoding]), default=0)
            if longest + 1 + _SCRATCH <= self._cache.capacity:
                return
            if self._make_room(len(self._rows), longest + 1):
                return
            youngest = max(self._rows, key=lambda row: row.order)
            self._remove(youngest)
            youngest.sequence.restart()
            self.turned_out.append(youngest.sequence)
            self._metrics.turned_out.inc()

    def _make_room(self, rows: int, longest: int) -> bool:
        """Rows of a capacity for `longest` tokens and for what the others need, if they fit."""
        needs = [longest, *(self._need(row) for row in self._rows)]
        capacity = max(self._roomiest, 1 << (max(needs) + _SCRATCH - 1).bit_length())
        capacity = min(capacity, max(self._most, SMALLEST_CAPACITY))
        now = self._cache
        if now.capacity >= capacity and now.rows >= rows:
            return True
        if min(now.tokens // capacity, now.max_rows) < rows:
            return False
        now.resize(capacity, [row.length for row in self._rows])
        return True

    def _need(self, row: Row) -> int:
        return row.length + row.sequence.waiting + (1 if row.sequence.to_come else 0)

    def _promote(self, row: Row) -> None:
        """Its prompt is in: it moves to the end of those that choose tokens."""
        at, target = self._rows.index(row), self._decoding
        if at != target:
            other = self._rows[target]
            self._cache.swap(at, target, max(row.length, other.length))
            self._rows[at], self._rows[target] = other, row
        self._decoding += 1

    def _end_diverged(self, rows: list[Row], good: list[bool]) -> None:
        bad = [row for row, is_number in zip(rows, good, strict=True) if not is_number]
        for row in bad:
            row.sequence.fail(diverged())
        self._wipe(bad)

    def _wipe(self, rows: list[Row]) -> None:
        """Remove them, and what may not be numbers first: a row that moves leaves a copy behind."""
        for row in rows:
            self._cache.wipe(self._rows.index(row))
        for row in rows:
            self._remove(row)

    def _remove(self, row: Row) -> None:
        """Close the gap: the last that decodes takes its place, and the last of all that one's."""
        at = self._rows.index(row)
        if at < self._decoding:
            self._decoding -= 1
            self._take_place(self._decoding, at)
            at = self._decoding
        self._take_place(len(self._rows) - 1, at)
        self._rows.pop()

    def _take_place(self, source: int, target: int) -> None:
        if source != target:
            self._cache.move(source, target, self._rows[source].length)
            self._rows[target] = self._rows[source]


def _wanted(sequence: Sequence, piece: list[int]) -> range:
    """The places of a piece after which the logits are needed.

    Of every piece the last: a row that is not a number must not stay until its prompt is fed.
    """
    return range(0 if sequence.scores_prompt else len(piece) - 1, len(piece))
