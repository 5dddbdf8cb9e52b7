"""What to make of adapters of one base: one new adapter, or the base with one of them in it.

Torch-free, for api and trainer alike.
"""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from engine.frozen import Asked

MAX_PARENTS = 16

# What PEFT's add_weighted_adapter offers; what each does, stands in PEFT's guide to model merging.
Combination = Literal[
    "linear", "cat", "svd", "ties", "ties_svd", "dare_linear", "dare_ties", "dare_linear_svd",
    "dare_ties_svd", "magnitude_prune", "magnitude_prune_svd",
]  # fmt: skip
# A and B are combined each by itself, so all of them must be of one rank.
OF_ONE_RANK = frozenset({"linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"})
# What is combined is B A, in full; the result is what its largest singular values say of it.
BY_SVD = frozenset({"svd", "ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd"})
# Some of the numbers are left out, all but a share of `density`.
PRUNED = (OF_ONE_RANK | BY_SVD) - {"linear", "svd"}
SIGNED = frozenset({"ties", "ties_svd", "dare_ties", "dare_ties_svd"})
# Of one adapter alone PEFT scales the matrices, whatever it is asked for.
OF_ONE_ADAPTER = frozenset({"linear", "cat"})


class WeightedAdapter(Asked):
    """An adapter by its id, and the factor on what it adds to the base's weights."""

    id: str = Field(min_length=1, max_length=64)
    weight: float = Field(1.0, ge=-1000, le=1000)


class Merge(Asked):
    """Adapters of one base combined into one; or, with `into_base`, one added to the base itself.

    `svd_rank` is the result's rank where it comes from singular values, by default the highest of
    the parents'. `density` is the share of numbers that is kept: the largest by magnitude_prune and
    ties (Yadav et al. 2023, https://arxiv.org/abs/2306.01708), some drawn by the seed by dare (Yu
    et al. 2023, https://arxiv.org/abs/2311.03099). `majority_sign_method` says how ties elects a
    sign: by the sum of the numbers (total), or by how many have it (frequency).
    """

    adapters: tuple[WeightedAdapter, ...] = Field(max_length=MAX_PARENTS)
    combination_type: Combination | None = None
    density: float | None = Field(None, gt=0, le=1)
    svd_rank: int | None = Field(None, ge=1, le=4096)
    majority_sign_method: Literal["total", "frequency"] | None = None
    into_base: bool = False

    @field_validator("adapters")
    @classmethod
    def _names_some(cls, adapters: tuple[WeightedAdapter, ...]) -> tuple[WeightedAdapter, ...]:
        if not adapters:
            raise ValueError("it is empty; name at least one adapter")
        ids = [adapter.id for adapter in adapters]
        twice = next((id for id in ids if ids.count(id) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice!r} is there twice; name it once, with one weight")
        if not any(adapter.weight for adapter in adapters):
            raise ValueError("every weight is 0, so the result would be the base")
        return adapters

    @model_validator(mode="after")
    def _says_how(self) -> Self:
        if self.into_base:
            self._goes_into_the_base()
        elif self.combination_type is None:
            raise ValueError(
                "combination_type is needed where `into_base` is not set: cat is exact and adds "
                "the ranks, svd keeps the rank that it is given"
            )
        else:
            self._combines(self.combination_type)
        return self

    def _goes_into_the_base(self) -> None:
        if len(self.adapters) != 1 or self.adapters[0].weight != 1:
            raise ValueError(
                "into_base takes one adapter, with weight 1; merge several into one adapter first"
            )
        for name in ("combination_type", "density", "svd_rank", "majority_sign_method"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name} does not go with `into_base`; leave it out")

    def _combines(self, how: Combination) -> None:
        if len(self.adapters) == 1 and how not in OF_ONE_ADAPTER:
            raise ValueError(
                f"{how} combines several adapters; use linear to scale one, or name another"
            )
        if (self.density is not None) != (how in PRUNED):
            raise ValueError(
                f"{how} needs a `density` above 0 and at most 1, such as 0.5"
                if how in PRUNED
                else f"{how} leaves nothing out; leave `density` out"
            )
        if self.svd_rank is not None and how not in BY_SVD:
            raise ValueError(f"svd_rank is for the types that end in svd; {how} makes its own rank")
        if self.majority_sign_method is not None and how not in SIGNED:
            raise ValueError(f"majority_sign_method is for ties; {how} elects no sign")


class MergeMethod(Merge):
    """A merge where a job says how its result is made."""

    type: Literal["merge"] = "merge"
