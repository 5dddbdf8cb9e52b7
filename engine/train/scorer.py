"""What scores a policy's answers: a grader, or a reward adapter that gets a base where it must."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from engine.graders import Grader, Judge, Sample, grade, questions
from engine.infer.head import scored_part
from engine.plan import TrainPlan, Warned
from engine.render import Renderer
from engine.spec import Online
from engine.train.examples import Asked
from engine.train.judges import Judging, Reader, judging
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
    it, so reward models then get a base of their own. Raises TrainingFailed.
    """

    @cache
    def switch() -> AdapterSwitch:
        if isinstance(model, PeftModel) and isinstance(model.active_peft_config, LoraConfig):
            return AdapterSwitch(model)
        own = get_peft_model(load_base(plan.base_path), LoraConfig(r=1, task_type="CAUSAL_LM"))
        own.requires_grad_(False)
        return AdapterSwitch(own)

    if getattr(plan.method, "grader", None) is not None:
        return grading(plan, switch, renderer, link)
    assert plan.reward_from is not None
    return rewarding(switch(), plan.reward_from, renderer.contract.pad_token_id)


def grading(
    plan: TrainPlan, switch: Callable[[], AdapterSwitch], renderer: Renderer, link: Link
) -> Scorer:
    """The plan's grader as a scorer; `switch` has the base of the reward adapters in it.

    Raises TrainingFailed for one of those that cannot be used.
    """
    method = plan.method
    assert isinstance(method, Online)
    assert method.grader is not None
    judge = judging(plan, method.grader, lambda folder, name: reading(switch(), folder, name), link)
    return Grading(method.grader, judge, renderer, link)


class Grading:
    """A grader as a scorer: it reads an answer as a client would be told it."""

    def __init__(self, grader: Grader, judge: Judging, renderer: Renderer, link: Link) -> None:
        self._grader, self._judge, self._link, self._warned = grader, judge, link, False
        self._tokenizer = renderer.tokenizer
        self._stops = frozenset(renderer.contract.stop_token_ids)

    def __call__(self, asked: Sequence[Asked], answers: Sequence[list[int]]) -> list[float]:
        """Raises StopRequested and TrainingFailed where a judge has to be waited for."""
        pairs = [
            (Sample(output_text=self._text(ids)), each.row.item)
            for each, ids in zip(asked, answers, strict=True)
        ]
        judges = self._judge([questions(self._grader, sample, item) for sample, item in pairs])
        return [
            self._score(sample, item, judge)
            for (sample, item), judge in zip(pairs, judges, strict=True)
        ]

    def _text(self, ids: list[int]) -> str:
        said = ids[:-1] if ids and ids[-1] in self._stops else ids
        text: str = self._tokenizer.decode(said, skip_special_tokens=True)
        return text

    def _score(self, sample: Sample, item: dict[str, Any], judge: Judge) -> float:
        found = grade(self._grader, sample, item, judge)
        if found.faults and not self._warned:
            self._warned = True
            fault = found.faults[0]
            self._link.send(
                Warned(message=f"The grader could not score an answer: {fault.message}")
            )
        return found.score


def rewarding(switch: AdapterSwitch, folder: Path, pad_token_id: int) -> Scorer:
    """A reward adapter as a scorer, on the base of the switch. Raises TrainingFailed."""
    read = reading(switch, folder, REWARD)

    def score(asked: Sequence[Asked], answers: Sequence[list[int]]) -> list[float]:
        pairs = zip(asked, answers, strict=True)
        return read([scored_part(each.input_ids + ids, pad_token_id) for each, ids in pairs])

    return score


def reading(switch: AdapterSwitch, folder: Path, name: str) -> Reader:
    """What reads a reward adapter's scores, on the base of the switch. Raises TrainingFailed."""
    head = add_reward_adapter(switch, folder, name)
    causal = switch.model.get_base_model()
    body = getattr(causal, causal.base_model_prefix)

    def read(inputs: Sequence[Sequence[int]]) -> list[float]:
        weights: Tensor = head.to(causal.device)
        training = switch.model.training
        switch.model.eval()
        with torch.no_grad(), switch.using(name):
            rewards = [_last_hidden(body, ids) @ weights[0] for ids in inputs]
        switch.model.train(training)
        return [reward.item() for reward in rewards]

    return read


def _last_hidden(body: Any, ids: Sequence[int]) -> Tensor:
    """The hidden state at the last token, [hidden]."""
    row = torch.tensor([list(ids)], device=body.device)
    hidden: Tensor = body(input_ids=row, use_cache=False).last_hidden_state
    return hidden[0, -1].float()
