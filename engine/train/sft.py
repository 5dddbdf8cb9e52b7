"""Supervised fine-tuning: cross-entropy on the assistant's tokens, by TRL's SFTTrainer."""

from typing import Any

from trl import SFTConfig

from engine.plan import Finished, TrainPlan
from engine.spec import SftMethod
from engine.train.kl import frozen_base
from engine.train.link import Link
from engine.train.mixing import Mixed, mixed, read_groups
from engine.train.packed import RowCollator, require_separate
from engine.train.sft_trainer import MixedSftTrainer
from engine.train.start import begin, finish
from engine.train.trainer import arguments, run


def train(plan: TrainPlan, link: Link) -> Finished:
    """Learn from the plan's conversations, and leave the adapter in `work_dir/adapter`.

    Raises StopRequested and TrainingFailed.
    """
    method = plan.method
    assert isinstance(method, SftMethod)
    renderer, groups = read_groups(plan, link)
    rows = mixed(plan, groups, link)
    start = begin(plan, [example for group in groups.main for example in group.examples])
    if method.packing:
        require_separate(start.model)
    trainer = MixedSftTrainer(
        kl_coef=method.kl_coef,
        base=frozen_base(plan) if method.kl_coef else None,
        shares={group.name: group.share for group in groups.main},
        rows=rows.rows,
        batches=rows.batches,
        model=start.model,
        args=arguments(
            SFTConfig,
            plan,
            method,
            max_length=None,  # the rows are cut already
            dataset_kwargs={"skip_prepare_dataset": True},
            **_in_order(rows, method),
        ),
        train_dataset=rows.split.train,
        eval_dataset=rows.held_out,
        data_collator=RowCollator(renderer.contract.pad_token_id),
        processing_class=start.tokenizer,
    )
    outcome = run(plan, link, trainer, rows.split)
    return finish(plan, link, start, outcome, renderer)


def _in_order(rows: Mixed, method: SftMethod) -> dict[str, Any]:
    """What the trainer is told where the whole run is one epoch to it."""
    if rows.batches is None:
        return {}
    told: dict[str, Any] = {"max_steps": rows.batches.steps}
    if method.early_stopping_patience and not method.eval_steps:
        told |= {"eval_strategy": "steps", "eval_steps": rows.batches.steps_an_epoch}
    return told
