"""Probes: log-probs of a few trained tokens, by which serving shows that it equals training."""

from typing import Any

from engine.infer.probes import compute_logprobs
from engine.plan import Probe
from engine.train.examples import IGNORED, Example

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


def combine(
    probes: list[tuple[list[int], int]],
    base: list[tuple[float, ...]],
    tuned: list[tuple[float, ...]],
) -> tuple[Probe, ...]:
    return tuple(
        Probe(token_ids=tuple(ids), prompt_tokens=start, logprobs=after, base_logprobs=before)
        for (ids, start), before, after in zip(probes, base, tuned, strict=True)
    )
