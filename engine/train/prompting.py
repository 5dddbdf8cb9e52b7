"""Prompts to answer: which are held out, in which order the others come, and how to sample."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import GenerationConfig

from engine.contract import RenderContract
from engine.plan import TrainPlan
from engine.spec import Online
from engine.train.examples import IGNORED, Asked, Example
from engine.train.trainer import draw_held_out


@dataclass(frozen=True)
class Prompts:
    """The prompts to learn from and those held out. The order is the seed's."""

    train: list[Asked]
    held_out: list[Asked]
    seed: int

    def batch(self, step: int, size: int) -> list[Asked]:
        """The prompts of a step, counted from 0."""
        return [self.train[place] for place in self.order((step + 1) * size, first=step * size)]

    def order(self, count: int, *, first: int = 0) -> list[int]:
        """Places of the prompts that come before `count`: each once before any comes again."""
        rows = len(self.train)
        epochs = range(first // rows, (count - 1) // rows + 1)
        places = [place for epoch in epochs for place in self._shuffled(epoch)]
        skipped = epochs.start * rows
        return places[first - skipped : count - skipped]

    def _shuffled(self, epoch: int) -> list[int]:
        places = list(range(len(self.train)))
        random.Random(f"{self.seed}/{epoch}").shuffle(places)
        return places

    def held_out_batches(self, size: int) -> list[list[Asked]]:
        return [self.held_out[i : i + size] for i in range(0, len(self.held_out), size)]


def split_prompts(
    examples: list[Asked], plan: TrainPlan, validation: Sequence[Asked] = ()
) -> Prompts:
    """Those of `validation` are held out too. Raises TrainingFailed where a side would be empty."""
    drawn = draw_held_out(len(examples), plan)
    train = [asked for i, asked in enumerate(examples) if i not in drawn]
    return Prompts(train, [*(examples[i] for i in sorted(drawn)), *validation], plan.seed)


def probe_examples(examples: list[Asked]) -> list[Example]:
    """Prompts as text to predict, from their middle on: rows without answers have no other."""
    rows = [asked.input_ids for asked in examples if len(asked.input_ids) > 1]
    return [Example(ids, [IGNORED] * (half := len(ids) // 2 or 1) + ids[half:]) for ids in rows]


def sampling(method: Online, contract: RenderContract) -> GenerationConfig:
    """From the whole distribution at the method's temperature, up to the first stop token."""
    return GenerationConfig(
        do_sample=True,
        temperature=method.temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=method.max_completion_length,
        eos_token_id=list(contract.stop_token_ids),
        pad_token_id=contract.pad_token_id,
    )
