"""Group-relative policy optimization and its kin, by TRL's GRPOTrainer."""

import math
from typing import Any

from datasets import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import GRPOConfig, GRPOTrainer

from engine.plan import Finished, TrainPlan
from engine.spec import GrpoMethod
from engine.steps import prompts_a_step, total_steps
from engine.train.examples import prompts as tokenized
from engine.train.link import Link
from engine.train.prompting import Prompts, probe_examples, split_prompts
from engine.train.reward_watch import RewardWatch
from engine.train.scorer import Scorer, scorer_of
from engine.train.start import begin, finish, read
from engine.train.trainer import Split, arguments, run


def train(plan: TrainPlan, link: Link) -> Finished:
    """Learn from groups of the policy's own answers, and leave it in `work_dir/adapter`.

    Raises StopRequested and TrainingFailed.
    """
    method = plan.method
    assert isinstance(method, GrpoMethod)
    renderer, data = read(plan, link, tokenized)
    start = begin(plan, probe_examples(data.examples))
    start.model.generation_config.eos_token_id = list(renderer.contract.stop_token_ids)
    prompts = split_prompts(data.examples, plan, data.validation)
    total = total_steps(method, len(prompts.train))
    split = _columns(prompts, method, total)
    trainer = TokenizedGrpoTrainer(
        model=start.model,
        reward_funcs=rewarded(scorer_of(plan, start.model, renderer, link), prompts),
        args=arguments(
            GRPOConfig,
            plan,
            method,
            num_generations=method.num_generations,
            num_iterations=method.num_iterations,
            max_completion_length=method.max_completion_length,
            temperature=method.temperature,
            beta=method.beta,
            epsilon=method.epsilon,
            loss_type=method.loss_type,
            importance_sampling_level="sequence" if method.loss_type == "luspo" else "token",
            scale_rewards=method.scale_rewards,
            max_steps=total,
            shuffle_dataset=False,  # the prompts are in the order of the whole run
        ),
        train_dataset=split.train,
        eval_dataset=split.held_out,
        processing_class=start.tokenizer,
        callbacks=[KlBound(RewardWatch(method, link))],
    )
    outcome = run(plan, link, trainer, split)
    return finish(plan, link, start, outcome, renderer)


class TokenizedGrpoTrainer(GRPOTrainer):
    """TRL's trainer, for prompts that are rendered and tokenized already."""

    def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, Any]:
        return prompts, None, {}


def rewarded(scorer: Scorer, prompts: Prompts) -> Any:
    """A scorer in the shape that TRL calls, with the columns of a row by name."""

    known = [*prompts.train, *prompts.held_out]

    def reward(*, place: list[int], completion_ids: list[list[int]], **_: Any) -> list[float]:
        return scorer([known[number] for number in place], completion_ids)

    return reward


class KlBound(TrainerCallback):
    """Warns of a constant reward and of KL above its bound, and stops there when asked to."""

    def __init__(self, watch: RewardWatch) -> None:
        self._watch = watch

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if logs and "reward_std" in logs and self._watch.stops(state.global_step, logs):
            control.should_training_stop = True


def _columns(prompts: Prompts, method: GrpoMethod, total_steps: int) -> Split:
    """Prompts in the order of the whole run: TRL's sampler forgets its own when it is resumed."""
    batches = math.ceil(total_steps / method.num_iterations)
    order = prompts.order(batches * prompts_a_step(method))
    rows = {
        "prompt": [asked.input_ids for asked in [*prompts.train, *prompts.held_out]],
        "place": list(range(len(prompts.train) + len(prompts.held_out))),
    }
    known = Dataset.from_dict(rows)
    held_out = known.select(range(len(prompts.train), len(known))) if prompts.held_out else None
    passes = len(order) / len(prompts.train)
    return Split(known.select(order), held_out, trained_tokens=0, passes=passes)
