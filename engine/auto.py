"""What "auto" stands for: hyperparameters from the method, the kind of PEFT, rows and base.

The same job on the same rows and base always gets the same numbers. They are a sound start for a
first run, not the outcome of a search.
"""

import math
from dataclasses import dataclass
from typing import Any

from engine.spec import (
    FullPeft,
    GrpoMethod,
    KtoMethod,
    LowRank,
    Method,
    Online,
    Peft,
    PpoMethod,
    PrefixTuningPeft,
    PromptTuningPeft,
    RewardMethod,
    SftMethod,
)
from engine.steps import total_steps

# Schulman et al. 2025, "LoRA Without Regret": LoRA learns best at ten times the rate of full
# fine-tuning, at about any rank; both fall as the base gets wider. There the exponent differs from
# family to family (0.08 to 0.78); this one is between.
FULL_RATE, LORA_TIMES = 5e-5, 10.0
WIDTH, WIDTH_POWER = 2000, 0.5
# Virtual tokens are few and far from zero: Lester et al. 2021 (section 3) train them at 0.3.
# What projects a prefix is a network, and moves as networks do.
PROMPT_RATE, PREFIX_RATE, PROJECTED_RATE = 0.1, 0.03, 1e-3
# Methods that hold the policy near to where it started take smaller steps.
SHARE_OF_SFT = {"sft": 1.0, "reward": 0.5, "orpo": 0.5, "dpo": 0.25, "kto": 0.25}
SHARE_ONLINE = 0.25
MOST_RATE = 1.0

TOKENS_A_BATCH = 8192
BYTES_A_TOKEN = 3.5
MOST_A_BATCH, LEAST_STEPS_AN_EPOCH = 16, 25
FEW_STEPS = 200


@dataclass(frozen=True)
class Facts:
    """What is known of a job's rows and base without reading them."""

    rows: int
    row_bytes: float
    hidden_size: int


def resolve(method: Method, peft: Peft, facts: Facts) -> Method:
    """The method with a number for each field in `auto`, which still says which those are.

    Rows that are packed are taken for full ones, as many fewer as they are longer; the number of
    epochs stays that of the rows themselves.
    """
    rules = {
        "per_device_batch_size": batch_size,
        "num_train_epochs": epochs,
        "learning_rate": learning_rate,
        "warmup_ratio": warmup_ratio,  # the last: it depends on how many steps there are
    }
    for name, rule in rules.items():
        if name in method.auto:
            number: Any = rule(method, peft, facts if rule is epochs else _packed(method, facts))
            method = method.model_copy(update={name: number})
    return method


def _packed(method: Method, facts: Facts) -> Facts:
    if not (isinstance(method, SftMethod) and method.packing):
        return facts
    row_bytes = max(facts.row_bytes, method.max_length * BYTES_A_TOKEN)
    rows = math.ceil(facts.rows * facts.row_bytes / row_bytes)
    return Facts(max(1, rows), row_bytes, facts.hidden_size)


def learning_rate(method: Method, peft: Peft, facts: Facts) -> float:
    """By the kind of PEFT, the base's width where its own weights are moved, and the method.

    Times the multiplier that the client gave.
    """
    match peft:
        case PromptTuningPeft():
            rate = PROMPT_RATE
        case PrefixTuningPeft():
            rate = PROJECTED_RATE if peft.prefix_projection else PREFIX_RATE
        case LowRank() | FullPeft():
            rate = FULL_RATE * (LORA_TIMES if isinstance(peft, LowRank) else 1)
            rate *= (WIDTH / facts.hidden_size) ** WIDTH_POWER
    rate = float(f"{rate * SHARE_OF_SFT.get(method.type, SHARE_ONLINE):.2g}")
    return min(MOST_RATE, rate * method.learning_rate_multiplier)


def batch_size(method: Method, peft: Peft, facts: Facts) -> int:
    """A power of two: small enough for many steps an epoch and for the memory of long rows.

    Where answers are sampled it is the smallest that groups and mini-batches divide, from 8 on.
    """
    if isinstance(method, Online):
        return _answers(method)
    steps = facts.rows / (LEAST_STEPS_AN_EPOCH * method.gradient_accumulation_steps)
    tokens = min(method.max_length, facts.row_bytes / BYTES_A_TOKEN)
    most = min(MOST_A_BATCH, steps, TOKENS_A_BATCH / max(1.0, tokens))
    least = 2 if isinstance(method, KtoMethod) else 1
    return max(least, 1 << max(0, math.floor(math.log2(max(1.0, most)))))


def epochs(method: Method, peft: Peft, facts: Facts) -> float:
    """More passes over few rows: what a run sees is about the same. Virtual tokens need twice."""
    if isinstance(method, Online):
        target, most = 500, 5
    elif isinstance(method, SftMethod):
        target, most = 3000, 10
    else:
        target, most = 1500, 3 if isinstance(method, RewardMethod) else 5
    passes = min(most, max(1, round(target / max(1, facts.rows))))
    virtual = isinstance(peft, PromptTuningPeft | PrefixTuningPeft)
    return float(passes * 2 if virtual else passes)


def warmup_ratio(method: Method, peft: Peft, facts: Facts) -> float:
    """A tenth of a short run; of a long one, less is enough for Adam's moments to settle."""
    kept = max(1, round(facts.rows * (1 - method.validation_split)))
    return 0.1 if total_steps(method, kept) < FEW_STEPS else 0.03


def _answers(method: Method) -> int:
    assert isinstance(method, PpoMethod | GrpoMethod)
    whole = method.num_generations if isinstance(method, GrpoMethod) else method.num_mini_batches
    step = whole // math.gcd(whole, method.gradient_accumulation_steps)
    return step * math.ceil(8 / step)
