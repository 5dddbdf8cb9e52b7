"""KL to the base model: how far the policy has moved, and the base that it is measured against."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from engine.plan import TrainPlan
from engine.train.model import load_base


def kl_to_base(logprobs: Tensor, base_logprobs: Tensor) -> Tensor:
    """KL(pi || pi_base) at each position, in nats: both [positions, vocabulary], natural log.

    sum over tokens of pi(token) (log pi(token) - log pi_base(token)), nothing of it sampled.
    """
    return (logprobs.exp() * (logprobs - base_logprobs)).sum(-1)


def frozen_base(plan: TrainPlan) -> Any:
    """A second copy of the base, where the first one is changed itself; else None."""
    if plan.peft.type != "full":
        return None
    return load_base(plan.base_path).requires_grad_(False).eval()


@contextmanager
def as_base(model: Any, copy: Any) -> Iterator[Any]:
    """The base model within: the copy, or the same weights without the adapter; without dropout."""
    if copy is not None:
        with torch.no_grad():
            yield copy.to(model.device)
        return
    assert isinstance(model, PeftModel)
    trained = [p for p in model.parameters() if p.requires_grad]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), model.disable_adapter():
            yield model
    finally:
        model.train(was_training)
        for parameter in trained:  # peft turns it off with the adapter
            parameter.requires_grad_(True)
