"""Direct preference optimization and its kin, by TRL's DPOTrainer.

The log-probs under the starting policy are computed once, before the first step, by the policy
itself: no second model is held, and a step costs one forward pass instead of two.
"""

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from trl import DPOConfig, DPOTrainer

from engine.plan import Finished, TrainPlan
from engine.spec import DpoMethod
from engine.train import spread
from engine.train.collators import PairCollator, pair_columns
from engine.train.examples import preferences
from engine.train.link import Link
from engine.train.start import begin, drop_reference, finish, read
from engine.train.trainer import arguments, fed, run, split_rows


def train(plan: TrainPlan, link: Link) -> Finished:
    """Learn from the plan's preferences, and leave the adapter in `work_dir/adapter`.

    Raises StopRequested and TrainingFailed.
    """
    method = plan.method
    assert isinstance(method, DpoMethod)
    renderer, data = read(plan, link, preferences)
    start = begin(plan, [pair.chosen for pair in data.examples])
    split = split_rows(data.examples, pair_columns, plan, data.validation)
    trainer = fed(DPOTrainer if spread.world() == 1 else SpreadDpoTrainer)(
        model=start.model,
        args=arguments(
            DPOConfig,
            plan,
            method,
            beta=method.beta,
            loss_type=[method.loss_type],
            label_smoothing=method.label_smoothing,
            max_length=None,  # the rows are cut already
            precompute_ref_log_probs=True,
            remove_unused_columns=False,
        ),
        train_dataset=split.train,
        eval_dataset=split.held_out,
        data_collator=PairCollator(renderer.contract.pad_token_id),
        processing_class=start.tokenizer,
    )
    drop_reference(start.model)
    outcome = run(plan, link, trainer, split)
    return finish(plan, link, start, outcome, renderer)


class SpreadDpoTrainer(DPOTrainer):
    """One of several processes.

    TRL's own reads the reference's log-probs from a file that the first process alone has written,
    in a folder of its own.
    """

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        loader = DataLoader(dataset, batch_size=batch_size, collate_fn=self.data_collator)
        found = [
            self.accelerator.gather_for_metrics(self.compute_ref_log_probs(self.model, batch))
            for batch in self.accelerator.prepare(loader)
        ]
        chosen, rejected = (torch.cat(part).float().cpu() for part in zip(*found, strict=True))
        dataset = dataset.add_column("ref_chosen_logps", chosen.numpy())
        return dataset.add_column("ref_rejected_logps", rejected.numpy())
