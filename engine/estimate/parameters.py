"""How many numbers a job trains, from the shapes of its base."""

import math

from engine.estimate.base import BaseShape
from engine.spec import (
    FullPeft,
    LowRank,
    Method,
    Peft,
    PpoMethod,
    PrefixTuningPeft,
    PromptTuningPeft,
    RewardMethod,
)


def trainable_parameters(
    base: BaseShape, method: Method, peft: Peft, reward_peft: Peft | None = None
) -> int:
    """What the optimizer moves. `reward_peft` is the reward adapter's, where there is one.

    A reward model's scalar head is trained whole. PPO also trains a value function: a LoRA like
    the reward model's, or else like the policy's, and a head.
    """
    found = adapter_parameters(base, peft)
    if isinstance(method, RewardMethod):
        tokens = base.head_parameters if isinstance(peft, FullPeft) else 0
        return found - tokens + base.hidden_size  # the scalar head stands where the tokens' did
    if isinstance(method, PpoMethod):
        return found + value_parameters(base, peft, reward_peft)
    return found


def value_parameters(base: BaseShape, peft: Peft, reward_peft: Peft | None) -> int:
    """Of PPO's value function: its adapter and its head."""
    return adapter_parameters(base, reward_peft or peft) + base.hidden_size


def adapter_parameters(base: BaseShape, peft: Peft) -> int:
    """Of one adapter of this kind; of a full one, every weight of the base."""
    match peft:
        case PromptTuningPeft():
            return peft.num_virtual_tokens * base.hidden_size
        case PrefixTuningPeft():
            width = base.kv_heads * base.head_dim
            if not peft.prefix_projection:
                return peft.num_virtual_tokens * base.layers * 2 * width
            hidden = peft.encoder_hidden_size
            network = (width + 1) * hidden + (hidden + 1) * base.layers * 2 * width
            return peft.num_virtual_tokens * width + network
        case FullPeft():
            return base.parameters
        case LowRank():
            return _low_rank(base, peft)


def targets(base: BaseShape, peft: LowRank) -> dict[str, tuple[int, int]]:
    """The layers that get a LoRA, as [out, in]."""
    if peft.target_modules == "all-linear":
        return base.linear
    ends = tuple(f".{name}" for name in peft.target_modules)
    return {name: shape for name, shape in base.linear.items() if f".{name}".endswith(ends)}


def _low_rank(base: BaseShape, peft: LowRank) -> int:
    """A [r, in] and B [out, r] a layer; with DoRA also the length of each output."""
    shapes = targets(base, peft).values()
    return sum(peft.r * sum(shape) + (shape[0] if peft.use_dora else 0) for shape in shapes)


def rank_width(base: BaseShape, peft: LowRank) -> int:
    """Numbers a position that the LoRAs of one layer keep between A and B, at most."""
    return math.ceil(len(targets(base, peft)) / base.layers) * peft.r
