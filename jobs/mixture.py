"""The datasets that a job learns from: which fields name them, and what speaks against them."""

from collections.abc import Iterator, Mapping
from typing import Any

from jobs.errors import SpecProblem
from jobs.model import Dataset, JobSpec

DATASET, REPLAY = "dataset", "replay.dataset"
MIXED_METHOD = "sft"


def datasets_of(spec: JobSpec) -> dict[str, str]:
    """What the job learns from, by the field that names it; what is replayed last."""
    named = {DATASET: spec.dataset} if spec.dataset is not None else {}
    for i, part in enumerate(spec.mixture or ()):
        named[f"mixture.{i}.dataset"] = part.dataset
    if spec.replay is not None:
        named[REPLAY] = spec.replay.dataset
    return named


def share_of(spec: JobSpec, field: str) -> float:
    """The weight of what a field names, or its ratio; 1 where it is alone."""
    if field == REPLAY:
        assert spec.replay is not None
        return spec.replay.ratio
    if field == DATASET:
        return 1.0
    assert spec.mixture is not None
    return spec.mixture[int(field.split(".")[1])].weight


def named_in(spec: Mapping[str, Any]) -> set[str]:
    """The same of a spec as it is stored; of a merge, nothing."""
    parts = [*(spec.get("mixture") or ()), spec.get("replay") or {}, spec]
    return {part["dataset"] for part in parts if part.get("dataset")}


def mixture_problems(spec: JobSpec, datasets: Mapping[str, Dataset]) -> Iterator[SpecProblem]:
    """Why these datasets cannot be learned from together."""
    for field, given in (("mixture", spec.mixture), ("replay", spec.replay)):
        if given is not None and spec.method.type != MIXED_METHOD:
            yield SpecProblem(
                field,
                "mixture_unsupported",
                f"{spec.method.type} reads one dataset, in an order of its own; give `dataset` "
                f"alone, or use method {MIXED_METHOD}.",
            )
    seen: dict[str, str] = {}
    for field, dataset in datasets.items():
        first = seen.setdefault(dataset.sha256, field)
        if first != field:
            yield SpecProblem(
                field,
                "same_dataset",
                f"Dataset {dataset.id} has the rows of `{first}`, so what is held out of one would "
                "be learned from the other; name each dataset once.",
            )
