"""What scores a policy's answers: a reward adapter, on the policy's own base where that can be."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from engine.plan import TrainPlan
from engine.train.model import load_base
from engine.train.reward_model import add_reward_adapter
from engine.train.switch import AdapterSwitch

REWARD = "reward"
Scorer = Callable[[list[list[int]]], list[float]]  # token ids of prompts and answers to rewards


def reward_scorer(plan: TrainPlan, model: Any) -> Scorer:
    """The scorer of the plan's reward adapter.

    A policy that is a LoRA lends its base. One of another kind changes the base or what is before
    it, so the reward model then gets a base of its own. Raises TrainingFailed.
    """
    assert plan.reward_from is not None
    if isinstance(model, PeftModel) and isinstance(model.active_peft_config, LoraConfig):
        return _on(AdapterSwitch(model), plan.reward_from)
    own = get_peft_model(load_base(plan.base_path), LoraConfig(r=1, task_type="CAUSAL_LM"))
    own.requires_grad_(False)
    return _on(AdapterSwitch(own), plan.reward_from)


def _on(switch: AdapterSwitch, folder: Path) -> Scorer:
    head = add_reward_adapter(switch, folder, REWARD)
    causal = switch.model.get_base_model()
    body = getattr(causal, causal.base_model_prefix)

    def score(sequences: list[list[int]]) -> list[float]:
        weights: Tensor = head.to(causal.device)
        training = switch.model.training
        switch.model.eval()
        with torch.no_grad(), switch.using(REWARD):
            rewards = [_last_hidden(body, ids) @ weights[0] for ids in sequences]
        switch.model.train(training)
        return [reward.item() for reward in rewards]

    return score


def _last_hidden(body: Any, ids: list[int]) -> Tensor:
    """The hidden state at the last token, [hidden]."""
    row = torch.tensor([ids], device=body.device)
    hidden: Tensor = body(input_ids=row, use_cache=False).last_hidden_state
    return hidden[0, -1].float()
