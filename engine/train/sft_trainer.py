"""TRL's SFTTrainer with what it lacks: a KL penalty, packed rows, several datasets to look at."""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import TrainerControl
from trl import SFTTrainer

from engine.train import spread
from engine.train.batches import Batches
from engine.train.examples import IGNORED
from engine.train.kl import as_base, kl_to_base
from engine.train.packed import tokens_of

REPLAY = "replay"  # among the datasets that are looked at, the one that is replayed


class MixedSftTrainer(SFTTrainer):
    """Cross-entropy plus `kl_coef` times the KL to the base, both means over trained tokens.

    `eval_loss` is the cross-entropy alone. Of several held-out datasets it is their mean by
    `shares`, beside the loss of each, `eval_loss/NAME`; what is replayed counts by itself, as
    `eval_replay_loss`. `kl`, and `eval_kl`, are in nats a token.
    """

    def __init__(
        self,
        *,
        kl_coef: float,
        base: Any,
        shares: Mapping[str, float],
        rows: Any,
        batches: Batches | None,
        **options: Any,
    ) -> None:
        self._total_train_tokens = 0
        super().__init__(**options)
        self._rows, self._batches = rows, batches
        self._kl_coef, self._base, self._shares = kl_coef, base, shares
        self._kl_seen = {"train": [0.0, 0.0], "eval": [0.0, 0.0]}  # nats, and tokens

    def get_train_dataloader(self) -> Any:
        if self._batches is None:
            return super().get_train_dataloader()
        loader = DataLoader(self._rows, batch_sampler=self._batches, collate_fn=self.data_collator)
        # As for a process by itself: each of several takes its own batches, and no others.
        device = self.accelerator.device
        return prepare_data_loader(loader, device, 1, 0, put_on_device=True)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        # A step's filling: its graph, and no figures; several processes count together, so all do.
        if spread.world() == 1 and (inputs["labels"] == IGNORED).all():
            loss = 0.0 * model(input_ids=inputs["input_ids"], use_cache=False).logits.sum()
            return (loss, {}) if return_outputs else loss
        before = self._total_train_tokens
        if self._kl_coef:
            loss = self._penalized(model, inputs, num_items_in_batch)
        else:
            loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        if self.model.training:
            tokens = inputs["attention_mask"].sum() if "attention_mask" in inputs else None
            count = tokens_of(inputs["position_ids"]) if tokens is None else int(tokens)
            self._total_train_tokens = before + int(spread.total(count))
            self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        return (loss, {}) if return_outputs else loss

    def _penalized(self, model: Any, inputs: dict[str, Tensor], items: Any) -> Tensor:
        mode = "train" if self.model.training else "eval"
        read: dict[str, Any] = {k: v for k, v in inputs.items() if k != "labels"}
        labels = inputs["labels"][:, 1:]
        trained = labels != IGNORED
        more = {"output_router_logits": True} if self.aux_loss_enabled else {}
        output = model(**read, **more, use_cache=False)
        logprobs = _logprobs(output.logits, trained)
        with as_base(self.accelerator.unwrap_model(model), self._base) as base:
            base_logprobs = _logprobs(base(**read, use_cache=False).logits, trained)
        kl = kl_to_base(logprobs, base_logprobs)
        losses = -logprobs.gather(1, labels[trained][:, None])[:, 0]
        if len(losses):
            self._note(mode, logprobs.detach(), labels[trained], kl.detach())
        if mode == "eval":
            return losses.mean()
        count = len(losses) if items is None else items
        loss: Tensor = (losses.sum() + self._kl_coef * kl.sum()) / count
        if items is not None:
            loss = loss * spread.world()  # `items` are everybody's, and gradients are averaged
        if self.aux_loss_enabled:
            steps = 1 if items is None else self.current_gradient_accumulation_steps
            loss = loss + self.router_aux_loss_coef * output.aux_loss / steps
        return loss

    def _note(self, mode: str, logprobs: Tensor, targets: Tensor, kl: Tensor) -> None:
        """What TRL reports where it computes the loss itself, and the KL."""
        entropy = -(logprobs.exp() * logprobs).sum(-1).mean()
        right = (logprobs.argmax(-1) == targets).float().mean()
        self._metrics[mode]["entropy"].append(entropy.item())
        self._metrics[mode]["mean_token_accuracy"].append(right.item())
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        seen = self._kl_seen[mode]
        self._kl_seen[mode] = [seen[0] + kl.sum().item(), seen[1] + len(kl)]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        self._metrics["eval"].pop("num_tokens", None)  # of the training so far, and not looked at
        nats, tokens = map(spread.total, self._kl_seen[mode])
        if tokens:
            logs["kl" if mode == "train" else "eval_kl"] = nats / tokens
            self._kl_seen[mode] = [0.0, 0.0]
        super().log(logs, start_time)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        if not isinstance(self.eval_dataset, dict):
            found: dict[str, float] = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
            return found
        main = {name: rows for name, rows in self.eval_dataset.items() if name != REPLAY}
        losses = {name: self._loss_on(rows) for name, rows in main.items()}
        whole = sum(self._shares[name] for name in losses)
        metrics = {"eval_loss": sum(self._shares[n] * loss for n, loss in losses.items()) / whole}
        if len(losses) > 1:
            metrics |= {f"eval_loss/{name}": loss for name, loss in losses.items()}
        if REPLAY in self.eval_dataset:
            kept = self._metrics["eval"].copy(), list(self._kl_seen["eval"])
            metrics["eval_replay_loss"] = self._loss_on(self.eval_dataset[REPLAY])
            self._metrics["eval"], self._kl_seen["eval"] = kept
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _loss_on(self, rows: Any) -> float:
        output = self.evaluation_loop(
            self.get_eval_dataloader(rows),
            description="Evaluation",
            prediction_loss_only=True,
            metric_key_prefix="eval",
        )
        return float(output.metrics["eval_loss"])


def _logprobs(logits: Tensor, trained: Tensor) -> Tensor:
    """[trained tokens, vocabulary], natural log: of what predicts each of them.

    `trained` is [rows, length - 1]; logits of virtual tokens, which stand before, are left aside.
    """
    length = trained.shape[1] + 1
    return torch.log_softmax(logits[:, -length:][:, :-1][trained].float(), -1)
