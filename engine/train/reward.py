"""A reward model from human comparisons, by TRL's RewardTrainer."""

import math
from functools import partial
from typing import Any

from peft import PeftModel
from transformers import AutoTokenizer, set_seed
from trl import RewardConfig, RewardTrainer

from engine.plan import Finished, ScoreProbe, TrainPlan
from engine.spec import QloraPeft, RewardMethod
from engine.train import spread
from engine.train.errors import ShareDone, TrainingFailed
from engine.train.examples import Pair, preferences
from engine.train.link import Link
from engine.train.model import export
from engine.train.reward_model import begin, load_headed_base, scores
from engine.train.start import read
from engine.train.trainer import arguments, run, split_rows

PROBES = 2  # pairs


def train(plan: TrainPlan, link: Link) -> Finished:
    """Learn to score from the plan's preferences, and leave the adapter in `work_dir/adapter`.

    Pairs of which an answer does not fit in `max_length` are left out: what is scored is the end.
    Raises StopRequested and TrainingFailed.
    """
    method = plan.method
    assert isinstance(method, RewardMethod)
    renderer, data = read(plan, link, partial(preferences, whole=True))
    set_seed(plan.seed)
    pad = renderer.contract.pad_token_id
    model = begin(plan, pad)
    split = split_rows(data.examples, columns, plan, data.validation)
    trainer = RewardTrainer(
        model=model,
        args=arguments(
            RewardConfig,
            plan,
            method,
            center_rewards_coefficient=method.center_rewards_coefficient,
            max_length=None,  # rows that are too long are out already
        ),
        train_dataset=split.train,
        eval_dataset=split.held_out,
        processing_class=AutoTokenizer.from_pretrained(plan.base_path, local_files_only=True),
    )
    model.register_forward_pre_hook(_drop_margin, with_kwargs=True)
    outcome = run(plan, link, trainer, split)
    folder = plan.work_dir / "adapter"
    if not spread.is_first():
        raise ShareDone
    export(model, plan.base_name, plan.base_path, folder)
    if isinstance(plan.peft, QloraPeft):  # it is served on the base that is not quantized
        model = PeftModel.from_pretrained(load_headed_base(plan.base_path, pad), folder)
    return Finished(
        path=folder,
        kind="reward",
        training_s=outcome.training_s,
        metrics=outcome.metrics,
        probes=(),
        scores=_probes(model, data.examples),
        contract=renderer.contract.model_dump(mode="json"),
    )


def columns(pairs: list[Pair]) -> dict[str, list[Any]]:
    """What the trainer reads; its loss is -log sigmoid(chosen - rejected - margin)."""
    return {
        "chosen_ids": [pair.chosen.input_ids for pair in pairs],
        "rejected_ids": [pair.rejected.input_ids for pair in pairs],
        "margin": [pair.margin for pair in pairs],
    }


def _drop_margin(_model: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
    """Keep from the model what TRL hands it of a batch and only the loss reads."""
    return args, {name: value for name, value in given.items() if name != "margin"}


def _probes(model: Any, pairs: list[Pair]) -> tuple[ScoreProbe, ...]:
    """Scores of the shortest pairs, by which serving shows that it equals training."""
    short = sorted(pairs, key=lambda pair: len(pair.chosen.input_ids))[:PROBES]
    sequences = [answer.input_ids for pair in short for answer in (pair.chosen, pair.rejected)]
    found = scores(model, sequences)
    if not all(map(math.isfinite, found)):
        text = "The last steps left a model without finite scores; lower `method.learning_rate`."
        raise TrainingFailed("diverged", text)
    return tuple(
        ScoreProbe(token_ids=tuple(ids), score=score)
        for ids, score in zip(sequences, found, strict=True)
    )
