"""What prompts begin with in common, kept: a system prompt is fed once and copied from then on."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

import torch

States = list[tuple[torch.Tensor, torch.Tensor]]  # by layer: keys and values [heads, n, width]

BLOCK = 32  # tokens that are kept, and found again, together


class Prefixes:
    """Blocks of attention state, the least recently used of which go.

    A block is known by everything before it and by a scope, which names whose it is and by which
    adapter it was made: what one tenant or adapter left, another never finds. Lives in the engine
    thread.
    """

    def __init__(self, max_blocks: int) -> None:
        self._max_blocks = max_blocks
        self._blocks: OrderedDict[bytes, States] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def find(self, scope: str, token_ids: Sequence[int]) -> list[States]:
        """The longest run of blocks these tokens begin with, leaving one token at least."""
        keys: list[bytes] = []
        for key in _keys(scope, token_ids[:-1]):
            if key not in self._blocks:
                break
            keys.append(key)
        for key in reversed(keys):  # what comes first stays longest: without it the rest is lost
            self._blocks.move_to_end(key)
        return [self._blocks[key] for key in keys]

    def keep(
        self, scope: str, token_ids: Sequence[int], read: Callable[[int, int], States]
    ) -> None:
        """Keep the whole blocks of these tokens; `read(begin, end)` gives a copy of theirs."""
        keys = list(_keys(scope, token_ids))[: self._max_blocks]
        for number, key in enumerate(keys):
            if key not in self._blocks:
                self._blocks[key] = read(number * BLOCK, (number + 1) * BLOCK)
        for key in reversed(keys):
            self._blocks.move_to_end(key)
        while len(self._blocks) > self._max_blocks:
            self._blocks.popitem(last=False)


def _keys(scope: str, token_ids: Sequence[int]) -> Iterator[bytes]:
    digest = hashlib.blake2b(scope.encode(), digest_size=16).digest()
    for begin in range(0, len(token_ids) - BLOCK + 1, BLOCK):
        block = ",".join(map(str, token_ids[begin : begin + BLOCK]))
        digest = hashlib.blake2b(digest + block.encode(), digest_size=16).digest()
        yield digest
