"""How many steps a run makes, and which rows it holds out. Torch-free, for trainer and estimate."""

import math
import random

from engine.spec import GrpoMethod, Training


def answers_a_step(method: Training) -> int:
    """Examples, or sampled answers, that one step of the optimizer learns from."""
    return method.per_device_batch_size * method.gradient_accumulation_steps


def prompts_a_step(method: Training) -> int:
    """Rows that one step reads; GRPO answers each of them several times."""
    answers = answers_a_step(method)
    return answers // method.num_generations if isinstance(method, GrpoMethod) else answers


def total_steps(method: Training, rows: int) -> int:
    """Steps of a run over `rows` that are not held out. A GRPO batch is learned from repeatedly."""
    if method.max_steps is not None:
        return method.max_steps
    an_epoch = max(1, math.ceil(rows / prompts_a_step(method)))
    if isinstance(method, GrpoMethod):
        an_epoch *= method.num_iterations
    return math.ceil(an_epoch * method.num_train_epochs)


def held_out_places(rows: int, share: float, seed: int) -> set[int]:
    """The places of the rows that are held out, the same for the same seed."""
    return set(random.Random(seed).sample(range(rows), round(rows * share)))


def can_hold_out(rows: int, share: float) -> bool:
    """Whether both sides have rows, where any are to be held out."""
    return not share or 0 < round(rows * share) < rows
