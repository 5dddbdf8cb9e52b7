"""The equations of PPO with a KL penalty, on tensors of shape [answers, tokens].

Masks are 1 where an answer has a token. Sources: Schulman et al. 2015, arXiv:1506.02438 (GAE);
Schulman et al. 2017, arXiv:1707.06347 (PPO); Ziegler et al. 2019, arXiv:1909.08593 (KL penalty).
"""

import torch
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Over the tokens of all answers together."""
    return (values * mask).sum() / mask.sum()


def whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """To variance 1 and, unless the mean is to stay, mean 0; 0 outside the mask."""
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean) ** 2, mask)
    white = (values - mean) * torch.rsqrt(variance + 1e-8)
    return (white if shift_mean else white + mean) * mask


def penalized_rewards(
    scores: Tensor, logprobs: Tensor, reference: Tensor, mask: Tensor, kl_coef: float
) -> Tensor:
    """-kl_coef (log pi - log pi_start) at each token, and the answer's score at its last.

    Ziegler et al. 2019, equation 2. `scores` is [answers].
    """
    rewards = -kl_coef * (logprobs - reference) * mask
    last = mask.sum(1).long() - 1
    rewards[torch.arange(len(rewards)), last] += scores
    return rewards


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns. Schulman et al. 2015, equations 11, 12 and 16.

    delta_t = r_t + gamma V_(t+1) - V_t and A_t = delta_t + gamma lam A_(t+1); after an answer's
    last token both V and A are 0. The return is A_t + V_t.
    """
    values = values * mask
    advantages = torch.zeros_like(rewards)
    following = rewards.new_zeros(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        after = values[:, t + 1] if t + 1 < rewards.shape[1] else torch.zeros_like(following)
        delta = rewards[:, t] + gamma * after - values[:, t]
        following = (delta + gamma * lam * following) * mask[:, t]
        advantages[:, t] = following
    return advantages, advantages + values


def policy_loss(
    logprobs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, cliprange: float
) -> tuple[Tensor, Tensor]:
    """The clipped surrogate, and the share of tokens where clipping binds. Schulman 2017, eq. 7."""
    ratio = torch.exp(logprobs - old)
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    loss = masked_mean(torch.maximum(plain, clipped), mask)
    return loss, masked_mean((clipped > plain).float(), mask)


def value_loss(
    values: Tensor, old: Tensor, returns: Tensor, mask: Tensor, cliprange: float
) -> tuple[Tensor, Tensor]:
    """Half the squared error, its step from the old value clipped, and the share that is."""
    near = old + (values - old).clamp(-cliprange, cliprange)
    plain, clipped = (values - returns) ** 2, (near - returns) ** 2
    loss = 0.5 * masked_mean(torch.maximum(plain, clipped), mask)
    return loss, masked_mean((clipped > plain).float(), mask)


def adapted(kl_coef: float, kl: float, *, target: float, horizon: float, answers: int) -> float:
    """The next coefficient of the penalty. Ziegler et al. 2019, section 2.2.

    Up while KL is above its target and down below it, by at most a fifth times answers / horizon.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * answers / horizon)
