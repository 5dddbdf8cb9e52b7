"""What scores a policy's answers: a grader, or a reward adapter that gets a base where it must."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from engine.graders import Grader, Sample, grade
from engine.infer.head import scored_part
from engine.plan import TrainPlan, Warned
from engine.render import Renderer
from engine.train.examples import Asked
from engine.train.link import Link
from engine.train.model import load_base
from engine.train.reward_model import add_reward_adapter
from engine.train.switch import AdapterSwitch

REWARD = "reward"
# The prompts, and the token ids of an answer to each, to their rewards.
Scorer = Callable[[Sequence[Asked], Sequence[list[int]]], list[float]]


def scorer_of(plan: TrainPlan, model: Any, renderer: Renderer, link: Link) -> Scorer:
    """The scorer of the plan's grader or reward adapter.

    A policy that is a LoRA lends its base. One of another kind changes the base or what is before
    it, so the reward model then gets a base of its own. Raises TrainingFailed.
    """
    grader: Grader | None = getattr(plan.method, "grader", None)
    if grader is not None:
        return Grading(grader, renderer, link)
    assert plan.reward_from is not None
    pad = renderer.contract.pad_token_id
    if isinstance(model, PeftModel) and isinstance(model.active_peft_config, LoraConfig):
        return rewarding(AdapterSwitch(model), plan.reward_from, pad)
    own = get_peft_model(load_base(plan.base_path), LoraConfig(r=1, task_type="CAUSAL_LM"))
    own.requires_grad_(False)
    return rewarding(AdapterSwitch(own), plan.reward_from, pad)


class Grading:
    """A grader as a scorer: it reads an answer as a client would be told it."""

    def __init__(self, grader: Grader, renderer: Renderer, link: Link) -> None:
        self._grader, self._link, self._warned = grader, link, False
        self._tokenizer = renderer.tokenizer
        self._stops = frozenset(renderer.contract.stop_token_ids)

    def __call__(self, asked: Sequence[Asked], answers: Sequence[list[int]]) -> list[float]:
        pairs = zip(asked, answers, strict=True)
        return [self._score(each, self._text(ids)) for each, ids in pairs]

    def _text(self, ids: list[int]) -> str:
        said = ids[:-1] if ids and ids[-1] in self._stops else ids
        text: str = self._tokenizer.decode(said, skip_special_tokens=True)
        return text

    def _score(self, asked: Asked, text: str) -> float:
        found = grade(self._grader, Sample(output_text=text), asked.row.item)
        if found.faults and not self._warned:
            self._warned = True
            fault = found.faults[0]
            self._link.send(
                Warned(message=f"The grader could not score an answer: {fault.message}")
            )
        return found.score


def rewarding(switch: AdapterSwitch, folder: Path, pad_token_id: int) -> Scorer:
    """A reward adapter as a scorer, on the base of the switch. Raises TrainingFailed."""
    head = add_reward_adapter(switch, folder, REWARD)
    causal = switch.model.get_base_model()
    body = getattr(causal, causal.base_model_prefix)

    def score(asked: Sequence[Asked], answers: Sequence[list[int]]) -> list[float]:
        weights: Tensor = head.to(causal.device)
        training = switch.model.training
        switch.model.eval()
        pairs = zip(asked, answers, strict=True)
        with torch.no_grad(), switch.using(REWARD):
            read = [scored_part(each.input_ids + ids, pad_token_id) for each, ids in pairs]
            rewards = [_last_hidden(body, ids) @ weights[0] for ids in read]
        switch.model.train(training)
        return [reward.item() for reward in rewards]

    return score


def _last_hidden(body: Any, ids: Sequence[int]) -> Tensor:
    """The hidden state at the last token, [hidden]."""
    row = torch.tensor([list(ids)], device=body.device)
    hidden: Tensor = body(input_ids=row, use_cache=False).last_hidden_state
    return hidden[0, -1].float()
