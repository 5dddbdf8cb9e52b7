"""ORPO's loss, against the paper's probabilities and TRL's experimental trainer."""

import math
import warnings
from types import SimpleNamespace

import pytest
import torch

from engine.train.orpo import log_not, log_odds_ratio, orpo_loss

CHOSEN, REJECTED = torch.tensor([-0.1, -2.0, -30.0]), torch.tensor([-1.5, -0.3, -0.01])


def test_the_ratio_is_that_of_the_odds() -> None:
    def odds(logprob: float) -> float:
        probability = math.exp(logprob)
        return probability / (1 - probability)

    expected = [
        math.log(odds(c) / odds(r)) for c, r in zip(CHOSEN.tolist(), REJECTED.tolist(), strict=True)
    ]
    assert log_odds_ratio(CHOSEN, REJECTED).tolist() == pytest.approx(expected, rel=1e-5)


def test_the_loss_is_that_of_trl_on_the_same_numbers() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.experimental.orpo import ORPOTrainer
    beta = 0.3
    trainer = SimpleNamespace(beta=beta, accelerator=SimpleNamespace(device="cpu"))
    losses, *_ = ORPOTrainer.odds_ratio_loss(trainer, CHOSEN, REJECTED)
    ours = orpo_loss(CHOSEN, log_odds_ratio(CHOSEN, REJECTED), beta)
    assert ours.tolist() == pytest.approx((-CHOSEN - losses).tolist(), rel=1e-5)


def test_a_certain_answer_has_a_finite_loss_and_gradient() -> None:
    certain = torch.tensor([0.0, -1e-9], requires_grad=True)
    loss = orpo_loss(certain, log_odds_ratio(certain, torch.tensor([-1.0, -1.0])), 0.1).sum()
    loss.backward()
    assert loss.isfinite()
    assert certain.grad is not None
    assert certain.grad.isfinite().all()
    assert log_not(torch.tensor([-50.0])).item() == pytest.approx(0.0)
