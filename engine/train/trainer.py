"""One run of a Trainer: its arguments from the plan, its loop under the runner's watch, its end."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Protocol, TypeVar

import torch
from datasets import Dataset
from transformers import EarlyStoppingCallback, PrinterCallback, TrainingArguments

from engine.plan import Started, TrainPlan
from engine.spec import Offline, Training
from engine.steps import can_hold_out, held_out_places, total_steps
from engine.train import sharding, spread
from engine.train.errors import StopRequested, TrainingFailed
from engine.train.link import Link
from engine.train.model import trainable_parameters
from engine.train.virtual_tokens import ProjectionCheckpoints, projection
from engine.train.watch import Watch

A = TypeVar("A", bound=TrainingArguments)
L = TypeVar("L", bound="Learned")
M = TypeVar("M", bound=Training)
T = TypeVar("T")


def arguments(config: type[A], plan: TrainPlan, method: Training, **own: Any) -> A:
    """What every trainer is told, and what this one is told besides."""
    gpu = torch.cuda.is_available()
    common: dict[str, Any] = {
        "output_dir": str(plan.work_dir / "checkpoints"),
        "seed": plan.seed,
        "data_seed": plan.seed,
        "num_train_epochs": method.num_train_epochs,
        "max_steps": method.max_steps or -1,
        "learning_rate": method.learning_rate,
        "lr_scheduler_type": method.lr_scheduler_type,
        "warmup_steps": method.warmup_ratio,  # a float below 1 is a share of all steps
        "per_device_train_batch_size": method.per_device_batch_size,
        "per_device_eval_batch_size": method.per_device_batch_size,
        "gradient_accumulation_steps": method.gradient_accumulation_steps,
        "weight_decay": method.weight_decay,
        "max_grad_norm": method.max_grad_norm,
        "activation_checkpointing": method.gradient_checkpointing,
        "bf16": gpu,
        "use_cpu": not gpu,
        "logging_steps": 1,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # a diverged run must show its NaN, not a loss of 0
        "save_strategy": "steps",
        "save_steps": plan.checkpoint_every,
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": gpu,
    }
    made: A = config(**(common | sharding.arguments(plan) | _evaluation(method) | own))
    made._n_gpu = min(made.n_gpu, 1)  # one process, one GPU, however many there are
    return made


def shared(method: M) -> M:
    """The method as all processes of the run together have it: so much larger are their steps."""
    batches = method.gradient_accumulation_steps * spread.world()
    return method.model_copy(update={"gradient_accumulation_steps": batches})


def _evaluation(method: Training) -> dict[str, Any]:
    if not isinstance(method, Offline):
        return {}
    if not method.early_stopping_patience and not method.eval_steps:
        return {}
    return {
        "eval_strategy": "steps" if method.eval_steps else "epoch",
        "eval_steps": method.eval_steps,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
    }


def draw_held_out(rows: int, plan: TrainPlan) -> set[int]:
    """The places of the rows that are held out, the same for the same seed.

    Raises TrainingFailed where either side would be empty.
    """
    share = plan.method.validation_split
    if not can_hold_out(rows, share):
        raise TrainingFailed(
            "nothing_to_hold_out",
            f"`method.validation_split` of {rows} rows leaves no row on one side; change it, or "
            "bring more rows.",
        )
    return held_out_places(rows, share, plan.seed)


class Learned(Protocol):
    """What is learned from: an example, a pair, a rated answer."""

    @property
    def trained_tokens(self) -> int: ...


@dataclass(frozen=True)
class Split:
    """Rows to learn from, and rows that are held out to look at.

    `passes` is how many epochs one of the trainer's is: 1, unless that is the whole run.
    `rows` are those of one pass, where `train` has several in one.
    """

    train: Dataset
    held_out: Dataset | None
    trained_tokens: int
    passes: float = 1.0
    rows: int | None = None


def split_rows(
    examples: list[L],
    columns: Callable[[list[L]], dict[str, list[Any]]],
    plan: TrainPlan,
    validation: Sequence[L] = (),
) -> Split:
    """Hold out `validation_split` of the examples, drawn by the job's seed; each side keeps order.

    With examples for `validation` those are looked at, and all others learned from.
    Raises TrainingFailed where either side would be empty.
    """
    drawn = draw_held_out(len(examples), plan)
    train = [example for i, example in enumerate(examples) if i not in drawn]
    held_out = [*(examples[i] for i in sorted(drawn)), *validation]
    return Split(
        Dataset.from_dict(columns(train)),
        Dataset.from_dict(columns(held_out)) if held_out else None,
        sum(example.trained_tokens for example in train),
    )


@dataclass
class Outcome:
    """What a run came to, where it was not stopped."""

    steps: int
    training_s: float
    metrics: dict[str, float] = field(default_factory=dict)


def fed(trainer: type[T]) -> type[T]:
    """The trainer, for rows that are rendered and tokenized already."""

    def keep(_self: Any, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    return type(trainer.__name__, (trainer,), {"_prepare_dataset": keep})


def run(plan: TrainPlan, link: Link, trainer: Any, split: Split) -> Outcome:
    """Train to the end or to where the runner says stop; look at what is held out before and after.

    Raises StopRequested and TrainingFailed.
    """
    method = plan.method
    watch = Watch(
        link,
        passes=split.passes,
        stride=getattr(method, "num_iterations", 1),
        # The advantages of a group add up to 0, and so may its loss, while its gradient does not.
        zero_is_odd=isinstance(method, Offline),
    )
    if network := projection(trainer.model):
        kept = ProjectionCheckpoints(network)
        trainer.add_callback(kept)  # before the watch, which reports what is saved
        trainer._load_from_checkpoint = kept.load
    trainer.add_callback(watch)
    trainer.remove_callback(PrinterCallback)  # the runner tells the client, nobody reads stdout
    if isinstance(method, Offline) and method.early_stopping_patience:
        trainer.add_callback(EarlyStoppingCallback(method.early_stopping_patience))
    link.send(_started(plan, trainer, split))
    begun = time.monotonic()
    if split.held_out is not None and plan.resume_from is None and not trainer.args.eval_on_start:
        trainer.evaluate()  # what there was before the first step
    resume_from = str(plan.resume_from) if plan.resume_from else None
    output = trainer.train(resume_from_checkpoint=resume_from)
    if watch.asked == "pause":
        raise StopRequested("pause")
    if split.held_out is not None and watch.evaluated_step < output.global_step:
        trainer.evaluate()
    metrics = {"train_loss": _mean_loss(trainer), "steps": output.global_step, **watch.evaluated}
    return Outcome(output.global_step, time.monotonic() - begun, metrics)


def _mean_loss(trainer: Any) -> float:
    """Over every step of the job; the trainer's own mean begins anew where a run was resumed."""
    return fmean(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)


def _started(plan: TrainPlan, trainer: Any, split: Split) -> Started:
    wanted, rows = trainer.args.max_steps, len(split.train)
    return Started(
        total_steps=wanted if wanted > 0 else total_steps(shared(plan.method), rows),
        rows=split.rows or round(rows / split.passes),
        trained_tokens=split.trained_tokens,
        trainable_parameters=trainable_parameters(trainer.model),
        resumed_step=int(plan.resume_from.name.rsplit("-", 1)[-1]) if plan.resume_from else 0,
    )
