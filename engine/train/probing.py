"""Probes: log-probs of a few trained tokens, by which serving shows that it equals training."""

from pathlib import Path
from typing import Any, NamedTuple

from engine.infer.probes import compute_logprobs
from engine.plan import Probe, TrainPlan
from engine.spec import QloraPeft
from engine.train.examples import IGNORED, Example
from engine.train.model import compute_dtype
from engine.train.quantization import LARGE_GAP, gap, measure_on_whole_base

PROBES = 3
MAX_TOKENS = 128


def choose(examples: list[Example]) -> list[tuple[list[int], int]]:
    """Up to PROBES pairs of token ids and the number of them that come before the first trained."""
    chosen = []
    for example in sorted(examples, key=lambda e: len(e.input_ids)):
        start = next(i for i, label in enumerate(example.labels) if i and label != IGNORED)
        ids = example.input_ids[:MAX_TOKENS]
        if start < len(ids):
            chosen.append((ids, start))
        if len(chosen) == PROBES:
            break
    return chosen


def measure(model: Any, probes: list[tuple[list[int], int]]) -> list[tuple[float, ...]]:
    """Log-probs of each probe's tokens from its start on, by the definition that serving uses."""
    return [tuple(compute_logprobs(model, ids, start)) for ids, start in probes]


class Measured(NamedTuple):
    """What a result's manifest says of it, and what its client should know."""

    probes: tuple[Probe, ...]
    metrics: dict[str, float]
    warnings: tuple[str, ...]


def as_served(
    plan: TrainPlan,
    folder: Path,
    probes: list[tuple[list[int], int]],
    base: list[tuple[float, ...]],
    tuned: list[tuple[float, ...]],
) -> Measured:
    """The probes of the exported adapter as it will be served.

    `base` and `tuned` are the log-probs that training saw. They are the served ones, but for QLoRA,
    whose base in training is not the one that serves: there they are measured anew.
    """
    if not isinstance(plan.peft, QloraPeft):
        return Measured(combine(probes, base, tuned), {}, ())
    plain, served = measure_on_whole_base(plan.base_path, folder, probes, compute_dtype())
    difference = gap(tuned, served)
    warning = (
        f"Served on the base that is not quantized, the adapter's log-probs are {difference:.2f} "
        "nats a token from those it had in training; compare it with one trained with lora."
    )
    return Measured(
        combine(probes, plain, served),
        {"quantization_logprob_gap": difference},
        (warning,) if difference > LARGE_GAP else (),
    )


def combine(
    probes: list[tuple[list[int], int]],
    base: list[tuple[float, ...]],
    tuned: list[tuple[float, ...]],
) -> tuple[Probe, ...]:
    return tuple(
        Probe(token_ids=tuple(ids), prompt_tokens=start, logprobs=after, base_logprobs=before)
        for (ids, start), before, after in zip(probes, base, tuned, strict=True)
    )
