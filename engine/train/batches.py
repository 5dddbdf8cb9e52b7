"""The batches of a run over mixed or packed rows, in the order that its epochs draw."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from engine.epochs import Epochs
from engine.spec import Training


@dataclass(frozen=True)
class Batches:
    """A batch sampler: each batch is rows, a row the places of its examples.

    An epoch is drawn when it is reached. Its last step is filled with a row of no examples, so that
    every step has `gradient_accumulation_steps` batches. No batch is above `batch_size`. Of several
    processes, whose batches the method counts together, each one takes every `world`th.
    """

    epochs: Epochs
    method: Training
    rank: int = 0
    world: int = 1
    drop_last: bool = False  # asked for by accelerate

    @cached_property
    def steps(self) -> int:
        """Of the optimizer, in the whole run."""
        return self.epochs.steps(self.method)

    @property
    def steps_an_epoch(self) -> int:
        """Of the optimizer, in the first epoch."""
        return self.epochs.steps_of(0, self.method)

    @property
    def batch_size(self) -> int:
        return self.method.per_device_batch_size

    def __len__(self) -> int:
        return self.steps * self.method.gradient_accumulation_steps // self.world

    def __iter__(self) -> Iterator[list[list[int]]]:
        size = self.batch_size
        for step in self.epochs.run(self.method):
            whole = size * self.method.gradient_accumulation_steps
            for first in range(size * self.rank, whole, size * self.world):
                yield step[first : first + size] or [[]]
