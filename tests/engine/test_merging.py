"""What a merge may be asked to do, as far as its own fields can say."""

from typing import Any

import pytest
from pydantic import ValidationError

from engine.merging import MAX_PARENTS, PRUNED, Merge


def asked(*weights: Any, **fields: Any) -> dict[str, Any]:
    adapters = [{"id": f"ad_{n}", "weight": weight} for n, weight in enumerate(weights)]
    return {"adapters": adapters, "combination_type": "cat"} | fields


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (asked(), "name at least one adapter"),
        (asked(*[1] * (MAX_PARENTS + 1)), "at most 16 items"),
        (asked(0, 0.0), "every weight is 0"),
        (asked(1, float("nan")), "finite number"),
        (asked(1, float("inf")), "finite number"),
        (asked(1, 1e9), "less than or equal to 1000"),
        ({"adapters": [{"id": "ad_0"}] * 2, "combination_type": "cat"}, "'ad_0' is there twice"),
        (asked(1, 1, combination_type=None), "combination_type is needed"),
        (asked(1, 1, combination_type="average"), "Input should be 'linear'"),
        (asked(1, combination_type="svd"), "svd combines several adapters; use linear"),
        (asked(1, 1, combination_type="ties"), "ties needs a `density` above 0"),
        (asked(1, 1, combination_type="ties", density=0), "greater than 0"),
        (asked(1, 1, combination_type="ties", density=1.5), "less than or equal to 1"),
        (asked(1, 1, density=0.5), "cat leaves nothing out"),
        (asked(1, 1, svd_rank=4), "svd_rank is for the types that end in svd"),
        (asked(1, 1, majority_sign_method="total"), "majority_sign_method is for ties"),
        (asked(1, into_base=True), "combination_type does not go with `into_base`"),
        (asked(1, 1, combination_type=None, into_base=True), "into_base takes one adapter"),
        (asked(0.5, combination_type=None, into_base=True), "with weight 1"),
        (
            asked(1, combination_type=None, into_base=True, density=0.5),
            "density does not go with `into_base`",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_makes_no_sense_is_refused_with_what_would(body: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        Merge.model_validate(body)


def test_what_makes_sense_reads_as_it_was_written() -> None:
    ties = asked(0.7, -0.3, combination_type="ties", density=0.5, majority_sign_method="frequency")
    assert Merge.model_validate(ties).model_dump(exclude_none=True, mode="json") == ties | {
        "into_base": False
    }
    assert Merge.model_validate(asked(1)).adapters[0].weight == 1
    assert Merge.model_validate({"adapters": [{"id": "ad_0"}], "into_base": True}).into_base
    assert {"ties", "dare_linear_svd", "magnitude_prune"} <= PRUNED
    assert not PRUNED & {"linear", "cat", "svd"}
