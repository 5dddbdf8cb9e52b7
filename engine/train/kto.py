"""Kahneman-Tversky optimization from unpaired labels, by TRL's KTOTrainer."""

import random
from collections.abc import Iterable
from functools import partial

from trl import KTOConfig, KTOTrainer

from engine.plan import Finished, TrainPlan
from engine.render import Renderer
from engine.rows import Row
from engine.spec import KtoMethod
from engine.train.collators import RatedCollator, rated_columns
from engine.train.errors import TrainingFailed
from engine.train.examples import Rated, Tokenized, ratings
from engine.train.link import Link
from engine.train.start import begin, drop_reference, finish, read
from engine.train.trainer import arguments, fed, run, split_rows


def train(plan: TrainPlan, link: Link) -> Finished:
    """Learn from the plan's ratings, and leave the adapter in `work_dir/adapter`.

    The rows are put in an order of the seed's once, and read in it every epoch: the answers that
    the KL term is estimated from belong to the rows of their batch. Raises StopRequested and
    TrainingFailed.
    """
    method = plan.method
    assert isinstance(method, KtoMethod)
    renderer, data = read(plan, link, _both_labels)
    random.Random(plan.seed).shuffle(data.examples)
    start = begin(plan, [rated.answer for rated in data.examples])
    columns = partial(rated_columns, batch_size=method.per_device_batch_size)
    split = split_rows(data.examples, columns, plan, data.validation)
    trainer = fed(KTOTrainer)(
        model=start.model,
        args=arguments(
            KTOConfig,
            plan,
            method,
            beta=method.beta,
            loss_type=method.loss_type,
            desirable_weight=method.desirable_weight,
            undesirable_weight=method.undesirable_weight,
            max_length=None,  # the rows are cut already
            precompute_ref_log_probs=True,
            remove_unused_columns=False,
            train_sampling_strategy="sequential",
        ),
        train_dataset=split.train,
        eval_dataset=split.held_out,
        data_collator=RatedCollator(renderer.contract.pad_token_id),
        processing_class=start.tokenizer,
    )
    drop_reference(start.model)
    outcome = run(plan, link, trainer, split)
    return finish(plan, link, start, outcome, renderer)


def _both_labels(rows: Iterable[Row], renderer: Renderer, max_length: int) -> Tokenized[Rated]:
    data = ratings(rows, renderer, max_length)
    labels = {rated.label for rated in data.examples}
    if len(labels) == 1:
        text = f"Every row has the label {str(labels.pop()).lower()}; KTO learns from both."
        raise TrainingFailed("one_label", text)
    return data
