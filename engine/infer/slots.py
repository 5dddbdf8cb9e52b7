"""The attention state of a batch: one preallocated memory, a row of it for each sequence."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache

from engine.infer.pages import zeros


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Heads with keys of their own, and the widths of a key and a value."""

    heads: int
    key_width: int
    value_width: int


@dataclass(frozen=True, slots=True)
class Feed:
    """Tokens on their way into the rows [first, first + n): which, where, and what they may see.

    ids and positions are [n, length]; a row's own tokens come first, and what pads it goes to the
    scratch position of its row. `seen` is how many positions the longest row has with these.
    """

    first: int
    ids: torch.Tensor
    positions: torch.Tensor
    is_padding: torch.Tensor
    seen: int

    @property
    def rows(self) -> int:
        return int(self.ids.shape[0])


class SlotCache(Cache):
    """Keys and values of at most `max_rows` sequences that have `tokens` positions between them.

    All rows are `capacity` positions long, so at most tokens // capacity of them are there; the
    last position of a row is scratch. `resize` lays the same memory out anew. A Transformers Cache:
    the forward that runs between two calls of `aim` reads and writes the rows that were aimed at.
    """

    def __init__(
        self,
        shapes: Sequence[LayerShape],
        *,
        tokens: int,
        max_rows: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(layers=[])
        self.tokens, self.max_rows, self._shapes = tokens, max_rows, tuple(shapes)
        self._memory = [
            (
                zeros(tokens * shape.heads * shape.key_width, dtype, device, as_filled=True),
                zeros(tokens * shape.heads * shape.value_width, dtype, device, as_filled=True),
            )
            for shape in shapes
        ]
        self._aim: Feed | None = None
        self._written: dict[int, torch.Tensor] = {}  # by how many heads a layer has
        self._lay_out(tokens // max_rows)

    @property
    def rows(self) -> int:
        """How many rows there are room for at this capacity."""
        return min(self.max_rows, self.tokens // self.capacity)

    def aim(self, feed: Feed) -> None:
        """What the next forward feeds."""
        self._aim = feed
        self._written.clear()

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *_: Any,
        **__: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write [n, heads, length, width] where it was aimed; all that the rows hold so far."""
        feed = self._aim
        assert feed is not None
        keys, values = self._layers[layer_idx]
        where = self._places(feed, keys.shape[1])
        for memory, states in ((keys, key_states), (values, value_states)):
            flat = states.transpose(1, 2).reshape(-1, states.shape[-1])
            memory.view(-1, states.shape[-1]).index_copy_(0, where, flat)
        rows = slice(feed.first, feed.first + feed.rows)
        return keys[rows, :, : feed.seen], values[rows, :, : feed.seen]

    def _places(self, feed: Feed, heads: int) -> torch.Tensor:
        """Where in a layer's memory each token's head goes, [n * length * heads]."""
        found = self._written.get(heads)
        if found is None:
            device = feed.positions.device
            rows = torch.arange(feed.first, feed.first + feed.rows, device=device)[:, None, None]
            head = torch.arange(heads, device=device)
            places = (rows * heads + head) * self.capacity + feed.positions[:, :, None]
            found = self._written[heads] = places.flatten()
        return found

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions are given with every forward, so nothing is to be counted on from here."""
        return 0

    def resize(self, capacity: int, lengths: Sequence[int]) -> None:
        """Make rows of another length, keeping the first lengths[i] positions of row i."""
        assert len(lengths) * capacity <= self.tokens
        assert max(lengths, default=0) < capacity
        before = self._layers
        self._lay_out(capacity)
        for old, new in zip(before, self._layers, strict=True):
            for was, becomes in zip(old, new, strict=True):
                kept = [was[row, :, :length].clone() for row, length in enumerate(lengths)]
                for row, (length, states) in enumerate(zip(lengths, kept, strict=True)):
                    becomes[row, :, :length] = states

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of a row over those of another."""
        for layer in self._layers:
            for states in layer:
                states[target, :, :length] = states[source, :, :length]

    def swap(self, a: int, b: int, length: int) -> None:
        """Let two rows change places, up to `length` positions of each."""
        for layer in self._layers:
            for states in layer:
                kept = states[a, :, :length].clone()
                states[a, :, :length] = states[b, :, :length]
                states[b, :, :length] = kept

    def wipe(self, row: int) -> None:
        """Zeros: a number that is none would reach whoever has the row next, through any mask."""
        for layer in self._layers:
            for states in layer:
                states[row].zero_()

    def read(self, row: int, begin: int, end: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """A copy of positions [begin, end) of a row, by layer keys and values [heads, n, width]."""
        return [
            (keys[row, :, begin:end].clone(), values[row, :, begin:end].clone())
            for keys, values in self._layers
        ]

    def write(
        self, row: int, end: int, states: Sequence[tuple[torch.Tensor, torch.Tensor]]
    ) -> None:
        """Put what `read` gave, or another cache holds, into the positions of a row up to `end`."""
        for layer, given in zip(self._layers, states, strict=True):
            for target, each in zip(layer, given, strict=True):
                target[row, :, end - each.shape[-2] : end] = each

    def _lay_out(self, capacity: int) -> None:
        self.capacity = capacity
        rows = self.rows
        self._layers = [
            (
                _view(keys, rows, shape.heads, capacity, shape.key_width),
                _view(values, rows, shape.heads, capacity, shape.value_width),
            )
            for (keys, values), shape in zip(self._memory, self._shapes, strict=True)
        ]


def _view(memory: torch.Tensor, rows: int, heads: int, capacity: int, width: int) -> torch.Tensor:
    return memory[: rows * heads * capacity * width].view(rows, heads, capacity, width)


def layer_shapes(cache: Any) -> list[LayerShape]:
    """The shapes of a Transformers cache that a forward has filled.

    Raises AttributeError or ValueError for one that holds something else than keys and values.
    """
    shapes = []
    for layer in cache.layers:
        _, heads, _, key_width = layer.keys.shape
        shapes.append(LayerShape(heads, key_width, layer.values.shape[-1]))
    return shapes


def visible(feed: Feed, window: int | None) -> torch.Tensor:
    """The boolean mask [n, 1, length, seen]: a token sees itself and what is before it.

    With a `window` it sees that many positions, its own among them. What pads a row sees the first
    position, so that its attention is a number, which nobody reads.
    """
    own = feed.positions.masked_fill(feed.is_padding, 0)[:, None, :, None]
    there = torch.arange(feed.seen, device=own.device)
    mask = there <= own
    if window is not None:
        mask &= there > own - window
    return mask
