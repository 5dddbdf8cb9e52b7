"""The log-prob of a token, as the trainer stores it in a manifest and the server reports it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch


def token_logprobs(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """log p(targets[i]) under logits[i], in float32. logits: [n, vocabulary], targets: [n]."""
    logits = logits.float()
    chosen = logits.gather(-1, targets[:, None])[:, 0]
    return chosen - logits.logsumexp(-1)


def compute_logprobs(
    model: Callable[..., Any], token_ids: Sequence[int], prompt_tokens: int
) -> list[float]:
    """[log p(token_ids[i] | token_ids[:i]) for i >= prompt_tokens], raw (temperature 1).

    `model` is a Transformers or PEFT causal model, or any callable that takes `input_ids` [1, n]
    and returns an object with `.logits` [1, n or more, vocabulary], of which the last n count. A
    module is put into eval mode for the call and back. Raises ValueError when there is nothing
    to score.
    """
    if not 1 <= prompt_tokens < len(token_ids):
        raise ValueError(
            f"{len(token_ids)} tokens with a prompt of {prompt_tokens} leave nothing to score; "
            "the prompt needs at least one token, and so does the completion"
        )
    was_training = bool(getattr(model, "training", False))
    if was_training:
        model.eval()  # type: ignore[attr-defined]  # only modules have `training`
    try:
        # no_grad and not inference_mode: modules may keep tensors that training goes on to use.
        with torch.no_grad():
            ids = torch.tensor([list(token_ids)], device=_device_of(model))
            # From the end: prompt tuning's virtual tokens have logits too, in front.
            logits = model(input_ids=ids).logits[0, prompt_tokens - len(token_ids) - 1 : -1]
            scores: list[float] = token_logprobs(logits, ids[0, prompt_tokens:]).tolist()
            return scores
    finally:
        if was_training:
            model.train()  # type: ignore[attr-defined]  # only modules have `training`


def _device_of(model: Callable[..., Any]) -> Any:
    if not isinstance(model, torch.nn.Module):
        return "cpu"
    return next((parameter.device for parameter in model.parameters()), "cpu")
