"""The datasets that a job learns from: which fields name them, and what speaks against them."""

from collections.abc import Iterator, Mapping
from typing import Any

from jobs.errors import SpecProblem
from jobs.model import Dataset, JobSpec

DATASET, REPLAY, VALIDATION = "dataset", "replay.dataset", "validation"
MIXED_METHOD = "sft"


def datasets_of(spec: JobSpec) -> dict[str, str]:
    """What the job learns from, by the field that names it; what is replayed comes last,
    and behind it what is only looked at.
    """
    named = {DATASET: spec.dataset} if spec.dataset is not None else {}
    for i, part in enumerate(spec.mixture or ()):
        named[f"mixture.{i}.dataset"] = part.dataset
    if spec.replay is not None:
        named[REPLAY] = spec.replay.dataset
    if spec.validation is not None:
        named[VALIDATION] = spec.validation
    return named


def share_of(spec: JobSpec, field: str) -> float:
    """The weight of what a field names, or its ratio; 1 where it is alone."""
    if field == REPLAY:
        assert spec.replay is not None
        return spec.replay.ratio
    if field in (DATASET, VALIDATION):
        return 1.0
    assert spec.mixture is not None
    return spec.mixture[int(field.split(".")[1])].weight


def named_in(spec: Mapping[str, Any]) -> set[str]:
    """The same of a spec as it is stored; of a merge, nothing."""
    parts = [*(spec.get("mixture") or ()), spec.get("replay") or {}, spec]
    named = {part.get("dataset") for part in parts} | {spec.get("validation")}
    return {dataset_id for dataset_id in named if dataset_id}


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
    yield from _validation_problems(spec)
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


def _validation_problems(spec: JobSpec) -> Iterator[SpecProblem]:
    """What cannot be said beside a dataset that is only looked at."""
    others = {
        "mixture": spec.mixture is not None,
        "replay": spec.replay is not None,
        "method.packing": getattr(spec.method, "packing", False),
        "method.validation_split": spec.method.validation_split > 0,
    }
    for field, given in others.items():
        if spec.validation is not None and given:
            yield SpecProblem(
                VALIDATION,
                "validation_unsupported",
                f"`validation` does not go with `{field}`; leave one of them out. "
                "`method.validation_split` holds rows out of every dataset.",
            )
