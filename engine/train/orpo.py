"""Odds-ratio preference optimization: one stage, no reference (Hong et al. 2024, arXiv:2403.07691).

TRL keeps its own outside its supported tree, so the loss is here.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Trainer, TrainingArguments

from engine.plan import Finished, TrainPlan
from engine.spec import OrpoMethod
from engine.train import spread
from engine.train.collators import PairCollator, pair_columns
from engine.train.examples import preferences
from engine.train.link import Link
from engine.train.start import begin, finish, read
from engine.train.trainer import arguments, run, split_rows


def train(plan: TrainPlan, link: Link) -> Finished:
    """Learn from the plan's preferences, and leave the adapter in `work_dir/adapter`.

    Raises StopRequested and TrainingFailed.
    """
    method = plan.method
    assert isinstance(method, OrpoMethod)
    renderer, data = read(plan, link, preferences)
    start = begin(plan, [pair.chosen for pair in data.examples])
    split = split_rows(data.examples, pair_columns, plan, data.validation)
    trainer = OrpoTrainer(
        method.beta,
        model=start.model,
        args=arguments(TrainingArguments, plan, method, remove_unused_columns=False),
        train_dataset=split.train,
        eval_dataset=split.held_out,
        data_collator=PairCollator(renderer.contract.pad_token_id),
        processing_class=start.tokenizer,
    )
    outcome = run(plan, link, trainer, split)
    return finish(plan, link, start, outcome, renderer)


class OrpoTrainer(Trainer):
    """The transformers Trainer with the loss of ORPO, and its margins in the log."""

    def __init__(self, beta: float, **options: Any) -> None:
        super().__init__(**options)
        self._beta = beta
        self._seen = Means()
        self.can_return_loss = True  # evaluation computes the loss too
        self.label_names: list[str] = []
        self.model_accepts_loss_kwargs = False  # the loss is a mean over pairs, not over tokens

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        chosen, rejected = mean_logprobs(model, inputs).chunk(2)
        ratio = log_odds_ratio(chosen, rejected)
        loss = orpo_loss(chosen, ratio, self._beta).mean()
        self._seen.add(
            "train" if model.training else "eval",
            {
                "nll_loss": -chosen.mean(),
                "log_odds_ratio": ratio.mean(),
                "rewards/chosen": self._beta * chosen.mean(),
                "rewards/rejected": self._beta * rejected.mean(),
                "rewards/margins": self._beta * (chosen - rejected).mean(),
                "rewards/accuracies": (chosen > rejected).float().mean(),
            },
        )
        return (loss, {}) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        prefix = "eval_" if "eval_loss" in logs else ""
        found = self._seen.take("eval" if prefix else "train")
        logs |= {prefix + name: value for name, value in found.items()}
        super().log(logs, start_time)


class Means:
    """Means of figures since they were last taken, by mode."""

    def __init__(self) -> None:
        self._kept: dict[str, list[dict[str, float]]] = {}

    def add(self, mode: str, figures: dict[str, Tensor]) -> None:
        values = {name: figure.item() for name, figure in figures.items()}
        self._kept.setdefault(mode, []).append(values)

    def take(self, mode: str) -> dict[str, float]:
        kept = self._kept.pop(mode, [])
        names = kept[0] if kept else {}
        count = spread.total(len(kept))
        return {name: spread.total(sum(f[name] for f in kept)) / count for name in names}


def mean_logprobs(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The mean log-prob of each answer's tokens, [2 pairs], natural log: log P of the paper."""
    outputs = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    )
    length = batch["input_ids"].shape[1]
    logits = outputs.logits[:, -length:][:, :-1]  # without the positions of virtual tokens
    mask = batch["completion_mask"][:, 1:]
    targets = batch["input_ids"][:, 1:]
    losses = F.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")
    return -(losses * mask).sum(1) / mask.sum(1)


def log_odds_ratio(chosen: Tensor, rejected: Tensor) -> Tensor:
    """log(odds(chosen) / odds(rejected)), odds(y) = P(y) / (1 - P(y)); equations 4 and 7."""
    return (chosen - rejected) - (log_not(chosen) - log_not(rejected))


def log_not(logprob: Tensor) -> Tensor:
    """log(1 - exp(logprob)); a probability of 1 is taken for the nearest number below it."""
    below = logprob.clamp(max=-torch.finfo(logprob.dtype).eps)
    return torch.log(-torch.expm1(below))


def orpo_loss(chosen: Tensor, ratio: Tensor, beta: float) -> Tensor:
    """The chosen answer's negative log-likelihood, and the odds ratio's; equations 6 and 7."""
    return -chosen - beta * F.logsigmoid(ratio)
