"""How the next token is chosen from the logits, and what its log-probs are."""

import hashlib
import random
from dataclasses import dataclass

import torch

from engine.infer.probes import token_logprobs

_GREEDY_BELOW = 1e-5
_LOWEST_LOGPROB = -9999.0  # JSON has no -inf


@dataclass(frozen=True, slots=True)
class Sampling:
    """What a client may set. temperature 0 is greedy; top_k below 1 and top_p 1 are off."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    seed: int | None = None


GREEDY = Sampling(temperature=0.0)


@dataclass(frozen=True, slots=True)
class Score:
    """A token's log-prob under the raw model (temperature 1), and the likeliest ones there."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Sampler:
    """Chooses the tokens of one sequence; its randomness is its own, so others cannot touch it."""

    def __init__(self, sampling: Sampling, index: int) -> None:
        self._sampling = sampling
        self._random = random.Random(_seed_of(sampling.seed, index))

    def choose(self, logits: torch.Tensor) -> int:
        """The next token's id. logits: [vocabulary]."""
        chosen = self._sampling
        if chosen.temperature < _GREEDY_BELOW or chosen.top_k == 1:
            return int(logits.argmax())
        point = self._random.random()
        logits = logits.float() / chosen.temperature
        if chosen.top_p >= 1.0 and not 0 < chosen.top_k < logits.numel():
            return _invert(logits.softmax(-1), point)
        ordered, ids = logits.sort(descending=True, stable=True)
        if chosen.top_k > 0:
            ordered, ids = ordered[: chosen.top_k], ids[: chosen.top_k]
        return int(ids[_invert(_nucleus(ordered.softmax(-1), chosen.top_p), point)])


def score_tokens(logits: torch.Tensor, targets: list[int], top: int) -> list[Score]:
    """The raw log-probs of targets[i] under logits[i]. logits: [n, vocabulary]."""
    logits = logits.float()
    own = token_logprobs(logits, torch.tensor(targets, device=logits.device)).tolist()
    if not top:
        return [Score(token, _finite(value), ()) for token, value in zip(targets, own, strict=True)]
    best = logits.topk(min(top, logits.shape[-1]), dim=-1)
    values = (best.values - logits.logsumexp(-1, keepdim=True)).tolist()
    return [
        Score(token, _finite(value), tuple(zip(ids, map(_finite, row), strict=True)))
        for token, value, ids, row in zip(targets, own, best.indices.tolist(), values, strict=True)
    ]


def _nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the fewest of the descending probabilities that reach top_p; the first one always."""
    before = probabilities.cumsum(-1) - probabilities
    return probabilities.masked_fill((before >= top_p) & (before > 0), 0.0)


def _invert(probabilities: torch.Tensor, point: float) -> int:
    """The index where the cumulative probability passes `point` of its total."""
    cumulative = probabilities.double().cumsum(-1)
    index = int(torch.searchsorted(cumulative, cumulative[-1] * point, right=True))
    return min(index, int(probabilities.nonzero()[-1]))


def _seed_of(seed: int | None, index: int) -> int | None:
    """Seeds of the choices of one request are unrelated, also to those of the next seed."""
    if seed is None:
        return None
    digest = hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest)


def _finite(logprob: float) -> float:
    return max(logprob, _LOWEST_LOGPROB)
