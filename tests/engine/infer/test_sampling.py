"""How tokens are drawn, and what their log-probs are."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from engine.infer.sampling import Sampler, Sampling, choose, score_tokens

LOGITS = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()


def draw(sampling: Sampling, times: int = 4000) -> dict[int, float]:
    """How often each token is drawn."""
    sampler = Sampler(sampling, 0)
    counts = Counter(choose(LOGITS[None], [sampler])[0] for _ in range(times))
    return {token: count / times for token, count in sorted(counts.items())}


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), {0: 0.4, 1: 0.3, 2: 0.2, 3: 0.1}),
        (Sampling(top_k=2), {0: 4 / 7, 1: 3 / 7}),
        (Sampling(top_k=99), {0: 0.4, 1: 0.3, 2: 0.2, 3: 0.1}),
        (Sampling(top_p=0.69), {0: 4 / 7, 1: 3 / 7}),
        (Sampling(top_p=0.01), {0: 1.0}),
        (Sampling(top_k=3, top_p=0.5), {0: 4 / 7, 1: 3 / 7}),
        (Sampling(temperature=0.5), {0: 16 / 30, 1: 9 / 30, 2: 4 / 30, 3: 1 / 30}),
        (Sampling(temperature=0), {0: 1.0}),
        (Sampling(logit_bias=((0, -100.0),)), {1: 3 / 6, 2: 2 / 6, 3: 1 / 6}),
        (Sampling(temperature=0, logit_bias=((3, 2.0),)), {3: 1.0}),
    ],
)
def test_tokens_are_drawn_as_often_as_they_should(
    sampling: Sampling, expected: dict[int, float]
) -> None:
    assert draw(replace(sampling, seed=0)) == pytest.approx(expected, abs=0.03)


def test_a_token_of_no_probability_is_never_drawn() -> None:
    logits = torch.tensor([float("-inf"), 0.0, float("-inf")])
    sampler = Sampler(Sampling(temperature=2.0, seed=1), 0)
    assert {choose(logits[None], [sampler])[0] for _ in range(200)} == {1}


def test_the_order_of_equal_logits_does_not_change_between_draws() -> None:
    drawn = [
        [
            choose(torch.zeros(1, 50), [Sampler(Sampling(top_p=0.9, seed=seed), 0)])[0]
            for seed in range(20)
        ]
        for _ in range(2)
    ]
    assert drawn[0] == drawn[1]


def test_scores_are_log_softmax_and_finite() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 9)
    logits[0, 5] = float("-inf")
    scores = score_tokens(logits, [5, 2, 7], top=2)
    expected = logits.log_softmax(-1)
    assert scores[0].logprob == -9999.0
    assert scores[1].logprob == pytest.approx(float(expected[1, 2]), abs=1e-6)
    best = expected[2].topk(2)
    assert [token for token, _ in scores[2].top] == best.indices.tolist()
    assert [value for _, value in scores[2].top] == pytest.approx(best.values.tolist(), abs=1e-6)


@pytest.mark.parametrize("top_k", [5, 255, 300, 900])
@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.99])
@pytest.mark.parametrize("repetition_penalty", [1.0, 1.7])
def test_the_tokens_that_may_be_drawn_are_those_of_transformers(
    top_k: int, top_p: float, repetition_penalty: float
) -> None:
    logits = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 2
    prompt = tuple(range(0, 1000, 3))
    processors = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(repetition_penalty),
            TemperatureLogitsWarper(1.5),
            TopKLogitsWarper(top_k),
            TopPLogitsWarper(top_p),
        ]
    )
    scores = processors(torch.tensor([prompt]), logits[None].clone())[0]
    sampling = Sampling(1.5, top_p, top_k, seed=0, repetition_penalty=repetition_penalty)
    every = [_PointedAt(sampling, prompt, place / 500) for place in range(500)]
    drawn = set(choose(logits.expand(500, -1), every))
    expected = {token for token in range(1000) if scores[token] > -float("inf")}
    assert drawn <= expected
    likely = scores.softmax(-1) > 2 / 500
    assert drawn >= {token for token in expected if likely[token]}


class _PointedAt(Sampler):
    """Draws the token at a given place among the probabilities."""

    def __init__(self, sampling: Sampling, prompt: tuple[int, ...], place: float) -> None:
        super().__init__(sampling, 0, prompt)
        self._place = place

    def point(self) -> float:
        return self._place


def test_rounding_that_swaps_equally_likely_tokens_changes_nothing_that_is_drawn() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 5.0 * (torch.rand(400, generator=generator) < 0.5)
    rounded = logits + torch.rand(400, generator=generator) * 1e-6
    sampling = Sampling(top_k=int(logits.count_nonzero()), seed=0)
    every = [_PointedAt(sampling, (), (place + 0.5) / 50) for place in range(50)]
    drawn = [choose(each.expand(50, -1), every) for each in (logits, rounded)]
    assert drawn[0] == drawn[1]
