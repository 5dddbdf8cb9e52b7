"""Supervised fine-tuning: cross-entropy on the assistant's tokens, by TRL's SFTTrainer."""

import math
import time
from statistics import fmean
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, PrinterCallback, set_seed
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from engine.plan import Finished, Started, TrainPlan, Warned
from engine.render import load_renderer
from engine.rows import iter_rows
from engine.spec import KIND_OF_PEFT, QloraPeft, SftMethod
from engine.train import probing
from engine.train.errors import StopRequested, TrainingFailed
from engine.train.examples import Tokenized, conversations
from engine.train.link import Link
from engine.train.model import add_peft, export, load_base, trainable_parameters
from engine.train.quantization import keep_float32
from engine.train.virtual_tokens import rate_warnings
from engine.train.watch import Watch


def train(plan: TrainPlan, link: Link) -> Finished:
    """Learn from the plan's conversations, and leave the adapter in `work_dir/adapter`.

    Raises StopRequested and TrainingFailed.
    """
    renderer = load_renderer(plan.base_path)
    rows = iter_rows(plan.dataset_path, plan.dataset_format, plan.row_type)
    data = conversations(rows, renderer, plan.method.max_length)
    cautions = rate_warnings(plan.peft, plan.method.learning_rate)
    for message in (*data.warnings(plan.method.max_length), *cautions):
        link.send(Warned(message=message))

    set_seed(plan.seed)
    base = load_base(plan.base_path, plan.peft)
    probes = probing.choose(data.examples)
    base_logprobs = probing.measure(base, probes)
    model = add_peft(base, plan.peft)

    watch = Watch(link)
    trainer = SFTTrainer(
        model=model,
        args=_arguments(plan, plan.method),
        train_dataset=_dataset(data),
        data_collator=DataCollatorForLanguageModeling(renderer.contract.pad_token_id),
        processing_class=AutoTokenizer.from_pretrained(plan.base_path, local_files_only=True),
        callbacks=[watch],
    )
    if isinstance(plan.peft, QloraPeft):
        keep_float32(trainer.model)
    trainer.remove_callback(PrinterCallback)  # the runner tells the client, nobody reads stdout
    link.send(_started(plan, trainer, data))
    begun = time.monotonic()
    output = trainer.train(
        resume_from_checkpoint=str(plan.resume_from) if plan.resume_from else None
    )
    training_s = time.monotonic() - begun
    if watch.asked == "pause":
        raise StopRequested("pause")

    folder = plan.work_dir / "adapter"
    export(trainer.model, plan.base_name, plan.base_path, folder)
    tuned_logprobs = probing.measure(trainer.model, probes)
    if not all(math.isfinite(logprob) for probe in tuned_logprobs for logprob in probe):
        raise TrainingFailed(
            "diverged",
            "The last steps left a model that predicts no probabilities; lower "
            "`method.learning_rate`.",
        )
    measured = probing.as_served(plan, folder, probes, base_logprobs, tuned_logprobs)
    for message in measured.warnings:
        link.send(Warned(message=message))
    return Finished(
        path=folder,
        kind=KIND_OF_PEFT[plan.peft.type],
        training_s=training_s,
        metrics={
            "train_loss": _mean_loss(trainer),
            "steps": output.global_step,
            **measured.metrics,
        },
        probes=measured.probes,
        contract=renderer.contract.model_dump(mode="json"),
    )


def _mean_loss(trainer: Any) -> float:
    """Over every step of the job; the trainer's own mean begins anew where a run was resumed."""
    return fmean(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)


def _dataset(data: Tokenized) -> Dataset:
    return Dataset.from_dict(
        {
            "input_ids": [example.input_ids for example in data.examples],
            "labels": [example.labels for example in data.examples],
        }
    )


def _arguments(plan: TrainPlan, method: SftMethod) -> SFTConfig:
    gpu = torch.cuda.is_available()
    return SFTConfig(
        output_dir=str(plan.work_dir / "checkpoints"),
        seed=plan.seed,
        data_seed=plan.seed,
        num_train_epochs=method.num_train_epochs,
        max_steps=method.max_steps or -1,
        learning_rate=method.learning_rate,
        lr_scheduler_type=method.lr_scheduler_type,
        warmup_steps=method.warmup_ratio,  # a float below 1 is a share of all steps
        per_device_train_batch_size=method.per_device_batch_size,
        gradient_accumulation_steps=method.gradient_accumulation_steps,
        weight_decay=method.weight_decay,
        max_grad_norm=method.max_grad_norm,
        activation_checkpointing=method.gradient_checkpointing,
        bf16=gpu,
        use_cpu=not gpu,
        max_length=None,  # the rows are cut already
        dataset_kwargs={"skip_prepare_dataset": True},
        logging_steps=1,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # a diverged run must show its NaN, not a loss of 0
        save_strategy="steps",
        save_steps=plan.checkpoint_every,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=gpu,
    )


def _started(plan: TrainPlan, trainer: Any, data: Tokenized) -> Started:
    method = plan.method
    batch = method.per_device_batch_size * method.gradient_accumulation_steps
    steps_per_epoch = max(1, math.ceil(len(data.examples) / batch))
    return Started(
        total_steps=method.max_steps or math.ceil(steps_per_epoch * method.num_train_epochs),
        rows=len(data.examples),
        trained_tokens=sum(example.trained_tokens for example in data.examples),
        trainable_parameters=trainable_parameters(trainer.model),
        resumed_step=int(plan.resume_from.name.rsplit("-", 1)[-1]) if plan.resume_from else 0,
    )
