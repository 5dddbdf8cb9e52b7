"""The model that a job trains, before its first step, and what it became, as files with probes."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from peft import LoraConfig, PeftConfig, PeftModel
from transformers import AutoTokenizer, PreTrainedTokenizerBase, set_seed

from engine.plan import Finished, Portion, TrainPlan, Warned
from engine.render import Renderer, load_renderer
from engine.rows import DatasetFormat, Row, iter_rows
from engine.spec import KIND_OF_PEFT, LowRank, PrefixTuningPeft, PromptTuningPeft, QloraPeft
from engine.train import probing, sharding, spread
from engine.train.errors import ShareDone, TrainingFailed
from engine.train.examples import Example, Tokenized
from engine.train.link import Link
from engine.train.model import add_peft, export, load_base
from engine.train.quantization import keep_float32
from engine.train.trainer import Outcome
from engine.train.virtual_tokens import continued, rate_warnings

T = TypeVar("T")
# Rows as examples of at most so many tokens each.
Reader = Callable[[Iterable[Row], Renderer, int], Tokenized[T]]
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
    base = load_base(plan.base_path, plan.peft)
    probes = probing.choose(examples)
    base_logprobs = probing.measure(base, probes)
    model = add_peft(base, plan.peft) if plan.init_from is None else _continued(plan, base)
    tokenizer = AutoTokenizer.from_pretrained(plan.base_path, local_files_only=True)
    return Start(model, tokenizer, probes, base_logprobs)


def _continued(plan: TrainPlan, base: Any) -> Any:
    assert plan.init_from is not None
    if plan.peft.type == "full":
        return load_base(plan.init_from)
    if isinstance(plan.peft, PromptTuningPeft | PrefixTuningPeft):
        return continued(base, plan.peft, plan.init_from)
    config = PeftConfig.from_pretrained(str(plan.init_from))
    # It has the client's name of the base, which peft would ask a hub about.
    config.base_model_name_or_path = str(plan.base_path)
    if isinstance(config, LoraConfig) and isinstance(plan.peft, LowRank):
        config.lora_dropout = plan.peft.lora_dropout  # chosen anew
    model = PeftModel.from_pretrained(base, plan.init_from, is_trainable=True, config=config)
    if isinstance(plan.peft, QloraPeft):
        keep_float32(model)
    return model


def read(plan: TrainPlan, link: Link, reader: Reader[T]) -> tuple[Renderer, Tokenized[T]]:
    """The plan's rows, as the base writes them.

    Warns of rows that were cut or left out, and of a learning rate for another kind of PEFT.
    """
    renderer = load_renderer(plan.base_path)
    data = read_rows(plan, link, renderer, reader, (plan.dataset_path, plan.dataset_format))
    for message in rate_warnings(plan.peft, plan.method.learning_rate):
        link.send(Warned(message=message))
    if plan.validation is None:
        return renderer, data
    return renderer, replace(
        data, validation=_looked_at(plan, plan.validation, link, renderer, reader)
    )


def _looked_at(
    plan: TrainPlan, portion: Portion, link: Link, renderer: Renderer, reader: Reader[T]
) -> tuple[T, ...]:
    """The examples of the validation dataset. Raises TrainingFailed, naming it."""
    named = f"Validation dataset {portion.dataset_id}: "
    source = (portion.path, portion.format)
    try:
        return tuple(read_rows(plan, link, renderer, reader, source, named=named).examples)
    except TrainingFailed as error:
        raise TrainingFailed(error.code, f"{named}{error}") from error


def read_rows(
    plan: TrainPlan,
    link: Link,
    renderer: Renderer,
    reader: Reader[T],
    source: tuple[Path, DatasetFormat],
    *,
    named: str = "",
) -> Tokenized[T]:
    """The rows of one of the plan's datasets; its warnings begin with how it is `named`."""
    path, format = source
    data = reader(iter_rows(path, format, plan.row_type), renderer, plan.method.max_length)
    for message in data.warnings(plan.method.max_length):
        link.send(Warned(message=named + message))
    return data


def finish(
    plan: TrainPlan, link: Link, start: Start, outcome: Outcome, renderer: Renderer
) -> Finished:
    """Write the adapter to `work_dir/adapter`. Raises TrainingFailed for one that diverged."""
    folder = plan.work_dir / "adapter"
    weights = sharding.gathered(start.model)
    tuned = probing.measure(start.model, start.probes)
    if not spread.is_first():
        raise ShareDone
    export(start.model, plan.base_name, plan.base_path, folder, weights)
    if not all(math.isfinite(logprob) for probe in tuned for logprob in probe):
        raise TrainingFailed(
            "diverged",
            "The last steps left a model that predicts no probabilities; lower "
            "`method.learning_rate`.",
        )
    measured = probing.as_served(plan, folder, start.probes, start.base_logprobs, tuned)
    for message in measured.warnings:
        link.send(Warned(message=message))
    return Finished(
        path=folder,
        kind=KIND_OF_PEFT[plan.peft.type],
        training_s=outcome.training_s,
        metrics=outcome.metrics | measured.metrics,
        probes=measured.probes,
        contract=renderer.contract.model_dump(mode="json"),
    )


def drop_reference(model: Any) -> None:
    """Let go of the copy of the adapter that TRL makes for log-probs that are computed already."""
    if isinstance(model, PeftModel) and "ref" in model.peft_config:
        model.delete_adapter("ref")
        model.set_adapter(POLICY)
