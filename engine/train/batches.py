"""The batches of a run whose rows are written out, in their order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Batches:
    """A batch sampler: the next `sizes[i]` rows; for a size of 0 the last row of all.

    `steps` are the optimizer's, in all and in the first epoch. No batch is above `batch_size`.
    """

    sizes: Sequence[int]
    batch_size: int
    steps: int
    steps_an_epoch: int
    drop_last: bool = False  # asked for by accelerate

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[list[int]]:
        blank = sum(self.sizes)
        for size, end in zip(self.sizes, accumulate(self.sizes), strict=True):
            yield list(range(end - size, end)) if size else [blank]
