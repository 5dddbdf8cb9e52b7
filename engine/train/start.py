"""The model that a job trains, before its first step, and what it became, as files with probes."""

import math
from dataclasses import dataclass
from typing import Any

from peft import PeftModel
from transformers import AutoTokenizer, PreTrainedTokenizerBase, set_seed

from engine.plan import Finished, TrainPlan, Warned
from engine.render import Renderer
from engine.train import probing
from engine.train.errors import TrainingFailed
from engine.train.examples import Example, Tokenized
from engine.train.link import Link
from engine.train.model import add_peft, export, load_base
from engine.train.trainer import Outcome

POLICY = "default"  # the adapter that is trained; others beside it are references


@dataclass
class Start:
    """The model to train, its tokenizer, and log-probs of the plain base to compare with."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    probes: list[tuple[list[int], int]]
    base_logprobs: list[tuple[float, ...]]


def begin(plan: TrainPlan, examples: list[Example]) -> Start:
    """Load the base and put on it what is trained: something new, or the adapter of `init_from`.

    The seed is set first, since what is new is drawn at random.
    """
    set_seed(plan.seed)
    base = load_base(plan.base_path)
    probes = probing.choose(examples)
    base_logprobs = probing.measure(base, probes)
    model = add_peft(base, plan.peft) if plan.init_from is None else _continued(plan, base)
    tokenizer = AutoTokenizer.from_pretrained(plan.base_path, local_files_only=True)
    return Start(model, tokenizer, probes, base_logprobs)


def _continued(plan: TrainPlan, base: Any) -> Any:
    assert plan.init_from is not None
    if plan.peft.type == "full":
        return load_base(plan.init_from)
    model = PeftModel.from_pretrained(base, plan.init_from, is_trainable=True)
    # Its config has the client's name of the base, which peft would ask a hub about.
    model.active_peft_config.base_model_name_or_path = str(plan.base_path)
    return model


def tell(link: Link, data: Tokenized[Any], max_length: int) -> None:
    """Warn of rows that were cut or left out."""
    for message in data.warnings(max_length):
        link.send(Warned(message=message))


def finish(plan: TrainPlan, start: Start, outcome: Outcome, renderer: Renderer) -> Finished:
    """Write the adapter to `work_dir/adapter`. Raises TrainingFailed for one that diverged."""
    folder = plan.work_dir / "adapter"
    export(start.model, plan.base_name, plan.base_path, folder)
    tuned = probing.measure(start.model, start.probes)
    if not all(math.isfinite(logprob) for probe in tuned for logprob in probe):
        raise TrainingFailed(
            "diverged",
            "The last steps left a model that predicts no probabilities; lower "
            "`method.learning_rate`.",
        )
    return Finished(
        path=folder,
        kind="full" if plan.peft.type == "full" else "lora",
        training_s=outcome.training_s,
        metrics=outcome.metrics,
        probes=probing.combine(start.probes, start.base_logprobs, tuned),
        contract=renderer.contract.model_dump(mode="json"),
    )


def drop_reference(model: Any) -> None:
    """Let go of the copy of the adapter that TRL makes for log-probs that are computed already."""
    if isinstance(model, PeftModel) and "ref" in model.peft_config:
        model.delete_adapter("ref")
        model.set_adapter(POLICY)
