"""The rank of what adapters are merged into, and whether theirs and the base's layers allow it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from adapters.errors import AdapterError
from adapters.tensors import base_shapes
from engine.bases import BaseModel
from engine.merging import BY_SVD, OF_ONE_RANK, Merge
from engine.spec import LowRank
from jobs.errors import SpecProblem

NOT_LAYERS = ("embed_tokens", "embed_in", "embed_out", "wte", "wpe", "lm_head")


def result_rank(merge: Merge, parents: Sequence[LowRank]) -> int:
    """The sum for cat, what was asked for of singular values, else the highest of the parents'."""
    ranks = [parent.r for parent in parents]
    if merge.combination_type == "cat":
        return sum(ranks)
    return merge.svd_rank or max(ranks)


def rank_problems(
    merge: Merge, parents: Sequence[LowRank], max_lora_rank: int
) -> Iterator[SpecProblem]:
    how, ranks = merge.combination_type, [parent.r for parent in parents]
    if how in OF_ONE_RANK and len(set(ranks)) > 1:
        shown = ", ".join(map(str, ranks))
        others = "cat or svd" if how == "linear" else f"{how}_svd, cat or svd"
        yield SpecProblem(
            "combination_type",
            "ranks_differ",
            f"{how} combines matrices of one rank, and the adapters' are {shown}; use {others}.",
        )
        return
    rank = result_rank(merge, parents)
    if rank <= max_lora_rank:
        return
    if how == "cat":
        way = f"use svd with an `svd_rank` of at most {max_lora_rank}."
    elif how in BY_SVD:
        way = "lower `svd_rank`." if merge.svd_rank else "give a lower `svd_rank`."
    else:
        way = f"use {'svd' if how == 'linear' else f'{how}_svd'} with a lower `svd_rank`."
    yield SpecProblem(
        "svd_rank" if how in BY_SVD else "combination_type",
        "rank_too_high",
        f"the result's rank {rank} is above this server's limit {max_lora_rank}; {way}",
    )


def layer_problems(
    merge: Merge, parents: Sequence[LowRank], base: BaseModel
) -> Iterator[SpecProblem]:
    """More singular values than a layer has, where the base's weights are here to be asked."""
    if merge.combination_type not in BY_SVD:
        return
    smallest = _smallest(base.path, targets_of(parents))
    rank = result_rank(merge, parents)
    if smallest is not None and rank > smallest:
        yield SpecProblem(
            "svd_rank",
            "rank_too_high",
            f"layers of {base.name} have no more than {smallest} singular values; give an "
            f"`svd_rank` of at most that instead of {rank}.",
        )


def targets_of(parents: Sequence[LowRank]) -> Literal["all-linear"] | tuple[str, ...]:
    """The layers that any of the adapters is on."""
    named: set[str] = set()
    for parent in parents:
        if parent.target_modules == "all-linear":
            return "all-linear"
        named.update(parent.target_modules)
    return tuple(sorted(named))


def _smallest(path: Path, targets: Literal["all-linear"] | tuple[str, ...]) -> int | None:
    """The least inputs or outputs of the layers that are named; None where nobody here knows."""
    try:
        shapes = base_shapes(path)
    except (AdapterError, OSError):
        return None  # only its small files are on this machine: the worker will tell
    sizes = []
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        if len(shape) != 2 or module.rpartition(".")[2] in NOT_LAYERS:
            continue
        if targets == "all-linear" or any(
            module == target or module.endswith(f".{target}") for target in targets
        ):
            sizes.append(min(shape))
    return min(sizes, default=None)
