"""How much a run computes: passes of tokens through the base, and calls that wait for each other.

A forward pass of one position is one token pass. Its backward pass is two more where every weight
is trained, and one more where the weights are frozen; recomputing activations adds one.
"""

import math
from dataclasses import dataclass

from engine.estimate.counting import Counts, Sides, expected_longest
from engine.spec import (
    DpoMethod,
    FullPeft,
    GrpoMethod,
    KtoMethod,
    Method,
    Offline,
    Online,
    OrpoMethod,
    Peft,
    PpoMethod,
    PrefixTuningPeft,
    PromptTuningPeft,
    RewardMethod,
    SftMethod,
    Training,
)
from engine.steps import answers_a_step, prompts_a_step, total_steps


@dataclass(frozen=True)
class Work:
    """`token_passes` and, of them, `head_passes` through the output head too; `calls` in a row."""

    token_passes: float
    head_passes: float
    calls: float

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.token_passes + other.token_passes,
            self.head_passes + other.head_passes,
            self.calls + other.calls,
        )

    def times(self, factor: float) -> "Work":
        return Work(self.token_passes * factor, self.head_passes * factor, self.calls * factor)


NOTHING = Work(0, 0, 0)


def work_of(method: Method, peft: Peft, counts: Counts, sides: Sides) -> Work:
    """The whole run, what is held out included."""
    steps = total_steps(method, sides.examples)
    if isinstance(method, Online):
        return _online(method, peft, counts, sides, steps)
    return _offline(method, peft, counts, sides, steps)


def _learned(peft: Peft, method: Training) -> int:
    """Token passes of one position, forward and backward."""
    return 1 + (2 if isinstance(peft, FullPeft) else 1) + method.gradient_checkpointing


def _virtual(peft: Peft) -> int:
    return peft.num_virtual_tokens if isinstance(peft, PromptTuningPeft | PrefixTuningPeft) else 0


def _offline(method: Method, peft: Peft, counts: Counts, sides: Sides, steps: int) -> Work:
    size = method.per_device_batch_size
    sequences = 2 if isinstance(method, RewardMethod | DpoMethod | OrpoMethod) else 1
    length = expected_longest(counts.lengths, size * sequences) + _virtual(peft)
    an_epoch = max(1, math.ceil(sides.examples / answers_a_step(method)))
    seen = steps / an_epoch * sides.examples
    batches = steps / an_epoch * math.ceil(sides.examples / size)
    forward = Work(length * sequences, length * sequences, 0)
    if isinstance(method, RewardMethod):
        forward = Work(length * sequences, 0, 0)
    found = forward.times(seen * _learned(peft, method))
    found += Work(0, 0, batches * _learned(peft, method))
    if isinstance(method, KtoMethod):  # the mismatched answers, which are not learned
        found += forward.times(seen) + Work(0, 0, batches)
    if isinstance(method, SftMethod) and method.kl_coef:  # the base's log-probs, at every step
        found += forward.times(seen) + Work(0, 0, batches)
    if isinstance(method, DpoMethod | KtoMethod):  # log-probs of the starting policy, once
        rows = (sides.examples + sides.held_out) * (2 if isinstance(method, KtoMethod) else 1)
        found += forward.times(rows) + Work(0, 0, rows / size)
    looks = _evaluations(method, steps) * sides.held_out
    return found + forward.times(looks) + Work(0, 0, looks / size)


def _evaluations(method: Method, steps: int) -> float:
    """Before and after, and between them where it is asked for."""
    if isinstance(method, Offline) and method.eval_steps:
        return 2 + steps / method.eval_steps
    if isinstance(method, Offline) and method.early_stopping_patience:
        return 2 + math.ceil(method.num_train_epochs)
    return 2


def _online(method: Online, peft: Peft, counts: Counts, sides: Sides, steps: int) -> Work:
    """Sampling, looking at what was sampled, learning from it."""
    answers = answers_a_step(method)
    prompt = expected_longest(counts.lengths, prompts_a_step(method)) + _virtual(peft)
    length, said = prompt + method.max_completion_length, method.max_completion_length
    batches = math.ceil(answers / method.per_device_batch_size)
    sampled = Work(answers * length, answers * said, said)
    seen = Work(answers * length, answers * said, batches)
    learned = seen.times(_learned(peft, method))
    scored = Work(answers * length, 0, answers) if method.reward_model else NOTHING
    if isinstance(method, PpoMethod):
        blind = Work(answers * length, 0, batches)
        looked = seen.times(2) + blind + scored
        both = learned + blind.times(_learned(peft, method))
        a_step = sampled + looked + both.times(method.num_ppo_epochs)
        found = a_step.times(steps)
    else:
        assert isinstance(method, GrpoMethod)
        rounds = steps / method.num_iterations
        looks = (1 if method.num_iterations > 1 else 0) + (1 if method.beta else 0)
        found = (sampled + seen.times(looks) + scored).times(rounds) + learned.times(steps)
    held_out = (sampled + seen.times(2) + scored).times(2 * sides.held_out / answers)
    return found + held_out


def sampled_tokens(method: Method, steps: int) -> int:
    """The most that the policy writes in the run, beside what it says to held-out prompts."""
    if not isinstance(method, Online):
        return 0
    rounds = math.ceil(steps / method.num_iterations) if isinstance(method, GrpoMethod) else steps
    return rounds * answers_a_step(method) * method.max_completion_length
