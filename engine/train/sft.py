"""Supervised fine-tuning: cross-entropy on the assistant's tokens, by TRL's SFTTrainer."""

from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from engine.plan import Finished, TrainPlan
from engine.spec import SftMethod
from engine.train.examples import Example, conversations
from engine.train.link import Link
from engine.train.start import begin, finish, read
from engine.train.trainer import arguments, run, split_rows


def train(plan: TrainPlan, link: Link) -> Finished:
    """Learn from the plan's conversations, and leave the adapter in `work_dir/adapter`.

    Raises StopRequested and TrainingFailed.
    """
    method = plan.method
    assert isinstance(method, SftMethod)
    renderer, data = read(plan, link, conversations)
    start = begin(plan, data.examples)
    split = split_rows(data.examples, columns, plan)
    trainer = SFTTrainer(
        model=start.model,
        args=arguments(
            SFTConfig,
            plan,
            method,
            max_length=None,  # the rows are cut already
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=split.train,
        eval_dataset=split.held_out,
        data_collator=DataCollatorForLanguageModeling(renderer.contract.pad_token_id),
        processing_class=start.tokenizer,
    )
    outcome = run(plan, link, trainer, split)
    return finish(plan, link, start, outcome, renderer)


def columns(examples: list[Example]) -> dict[str, list[list[int]]]:
    return {
        "input_ids": [example.input_ids for example in examples],
        "labels": [example.labels for example in examples],
    }
