"""The equations of PPO, against the papers' sums written out."""

import math

import pytest
import torch

from engine.train.ppo_equations import (
    adapted,
    gae,
    masked_mean,
    penalized_rewards,
    policy_loss,
    value_loss,
    whiten,
)

MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
GAMMA, LAM = 0.9, 0.8


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_score_is_at_the_last_token_and_the_penalty_at_each() -> None:
    logprobs, reference = random(2, 4), random(2, 4) - 1
    rewards = penalized_rewards(torch.tensor([5.0, 7.0]), logprobs, reference, MASK, 0.1)
    penalty = -0.1 * (logprobs - reference)
    assert rewards[0].tolist() == pytest.approx((penalty[0] + torch.tensor([0, 0, 0, 5])).tolist())
    assert rewards[1].tolist() == pytest.approx(
        [*(penalty[1, :2] + torch.tensor([0, 7])).tolist(), 0, 0]
    )


def test_advantages_are_the_discounted_sum_of_all_later_errors() -> None:
    rewards, values = random(2, 4) * MASK, random(2, 4)
    advantages, returns = gae(rewards, values, MASK, gamma=GAMMA, lam=LAM)
    for row, length in enumerate((4, 2)):
        known = [*values[row, :length].tolist(), 0.0]
        errors = [rewards[row, t].item() + GAMMA * known[t + 1] - known[t] for t in range(length)]
        for t in range(length):
            expected = sum((GAMMA * LAM) ** (k - t) * errors[k] for k in range(t, length))
            assert advantages[row, t].item() == pytest.approx(expected)
            assert returns[row, t].item() == pytest.approx(expected + known[t])
    assert advantages[1, 2:].tolist() == [0, 0]


def test_with_lam_1_returns_are_the_discounted_rewards_whatever_the_values_say() -> None:
    rewards = torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.0, 2.0, 0.0, 0.0]])
    _, returns = gae(rewards, random(2, 4).float(), MASK, gamma=GAMMA, lam=1.0)
    assert returns[0].tolist() == pytest.approx([GAMMA**3, GAMMA**2, GAMMA, 1.0])
    assert returns[1, :2].tolist() == pytest.approx([2 * GAMMA, 2.0])


def test_the_policy_loss_stops_paying_beyond_the_clip() -> None:
    """Schulman et al. 2017, figure 1: flat above 1 + eps for A > 0, below 1 - eps for A < 0."""
    old = torch.zeros(1, 1)
    one = torch.ones(1, 1)
    for advantage, ratio, expected, bound in (
        (1.0, 1.5, -1.2, 1.0),
        (1.0, 0.5, -0.5, 0.0),
        (-1.0, 0.5, 0.8, 1.0),
        (-1.0, 1.5, 1.5, 0.0),
    ):
        logprobs = torch.full((1, 1), math.log(ratio))
        loss, clipped = policy_loss(logprobs, old, one * advantage, one, 0.2)
        assert loss.item() == pytest.approx(expected)
        assert clipped.item() == bound


def test_the_value_loss_takes_the_worse_of_the_clipped_and_the_plain_error() -> None:
    one, old, returns = torch.ones(1, 1), torch.zeros(1, 1), torch.ones(1, 1)
    loss, clipped = value_loss(one * 0.9, old, returns, one, 0.2)
    assert loss.item() == pytest.approx(0.5 * (1 - 0.2) ** 2)
    assert clipped.item() == 1.0
    loss, clipped = value_loss(one * 0.1, old, returns, one, 0.2)
    assert loss.item() == pytest.approx(0.5 * 0.9**2)
    assert clipped.item() == 0.0


def test_whitening_is_over_the_mask_alone() -> None:
    white = whiten(random(2, 4), MASK)
    kept = white[MASK.bool()]
    assert kept.mean().item() == pytest.approx(0, abs=1e-9)
    assert kept.var(correction=0).item() == pytest.approx(1, abs=1e-6)
    assert white[1, 2:].tolist() == [0, 0]
    values = random(2, 4)
    shifted = whiten(values, MASK, shift_mean=False)
    assert masked_mean(shifted, MASK).item() == pytest.approx(masked_mean(values, MASK).item())


@pytest.mark.parametrize(
    ("kl", "expected"), [(6.0, 1.0), (6.6, 1.01), (60.0, 1.02), (3.0, 0.98), (5.7, 0.995)]
)
def test_the_coefficient_follows_kl_by_a_fifth_at_most(kl: float, expected: float) -> None:
    assert adapted(1.0, kl, target=6.0, horizon=1000, answers=100) == pytest.approx(expected)
