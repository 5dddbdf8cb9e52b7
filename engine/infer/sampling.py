"""How the next tokens are chosen from the logits, and what their log-probs are."""

import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.infer.errors import RequestInvalid
from engine.infer.grammar import Matcher
from engine.infer.probes import token_logprobs

_GREEDY_BELOW = 1e-5
_LOWEST_LOGPROB = -9999.0  # JSON has no -inf
_LIKELIEST = 256  # of so many tokens a nucleus is looked for first; sorting them all is slow


@dataclass(frozen=True, slots=True)
class Sampling:
    """What a client may set. temperature 0 is greedy; the other defaults are off.

    First the logit bias, then the penalties (repetition: Keskar et al. 2019,
    https://arxiv.org/abs/1909.05858, section 4.1, over prompt and answer; presence and frequency:
    OpenAI's, over the answer), then the temperature, then min_p (Nguyen et al. 2024,
    https://arxiv.org/abs/2407.01082), top_k and top_p.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    seed: int | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()  # token ids, and what is added to their logits

    @property
    def is_greedy(self) -> bool:
        return self.temperature < _GREEDY_BELOW or self.top_k == 1

    @property
    def penalizes(self) -> bool:
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)


GREEDY = Sampling(temperature=0.0)


@dataclass(frozen=True, slots=True)
class Score:
    """A token's log-prob under the raw model (temperature 1), and the likeliest ones there."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Sampler:
    """How one sequence's tokens are chosen; its randomness is its own: others cannot touch it."""

    def __init__(
        self,
        sampling: Sampling,
        index: int,
        prompt_ids: Sequence[int] = (),
        matcher: Matcher | None = None,
    ) -> None:
        self.sampling, self._matcher = sampling, matcher
        self._random = random.Random(_seed_of(sampling.seed, index))
        self._prompt = sorted(set(prompt_ids)) if sampling.repetition_penalty != 1 else []
        self._made: Counter[int] = Counter()

    def note(self, token_id: int) -> None:
        """This token was chosen."""
        if self._matcher is not None:
            self._matcher.accept(token_id)
        if self.sampling.penalizes:
            self._made[token_id] += 1

    def point(self) -> float:
        """Where in [0, 1) of the probabilities the next token lies."""
        return self._random.random()

    @property
    def fault(self) -> RequestInvalid | None:
        """Why no token can be chosen any more."""
        return self._matcher.fault if self._matcher is not None else None

    @property
    def is_over(self) -> bool:
        """The document that the sequence is kept to is whole."""
        return self._matcher is not None and self._matcher.is_over

    @property
    def changes(self) -> bool:
        sampling = self.sampling
        return self._matcher is not None or sampling.penalizes or bool(sampling.logit_bias)

    def changed(self, logits: torch.Tensor) -> torch.Tensor:
        """A copy of the logits [vocabulary]: first what the grammar forbids is out.

        Then the client's bias is added, and what the sequence has said so far is held against it.
        """
        if self._matcher is not None:
            logits = self._matcher.masked(logits)
        sampling = self.sampling
        if sampling.logit_bias:
            ids = torch.tensor([token for token, _ in sampling.logit_bias], device=logits.device)
            bias = torch.tensor([added for _, added in sampling.logit_bias], device=logits.device)
            logits = logits.float().index_add(0, ids, bias)
        if not sampling.penalizes:
            return logits
        logits = logits.float().clone()
        if sampling.repetition_penalty != 1:
            ids = [*{*self._prompt, *self._made}]
            seen = torch.tensor(ids, dtype=torch.long, device=logits.device)
            those = logits[seen]
            factor = sampling.repetition_penalty
            logits[seen] = torch.where(those > 0, those / factor, those * factor)
        if self._made:
            ids = torch.tensor(list(self._made), device=logits.device)
            counts = torch.tensor(list(self._made.values()), device=logits.device)
            logits[ids] -= sampling.presence_penalty + sampling.frequency_penalty * counts
        return logits


def choose(logits: torch.Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """The next token of each sequence; what a row gives does not depend on the others.

    logits: [n, vocabulary], finite where a token may be chosen; they stay as they are.
    """
    changed = {
        i: sampler.changed(logits[i]).float()
        for i, sampler in enumerate(samplers)
        if sampler.changes
    }
    chosen: list[int] = logits.max(-1).indices.tolist()  # argmax: 4 times as long in bfloat16
    for i, row in changed.items():
        if samplers[i].sampling.is_greedy:
            chosen[i] = int(row.argmax())
    drawn = [i for i, sampler in enumerate(samplers) if not sampler.sampling.is_greedy]
    if drawn:
        rows = logits[drawn].float()
        for place, i in enumerate(drawn):
            if i in changed:
                rows[place] = changed[i]
        tokens = _draw(rows, [samplers[i] for i in drawn])
        for i, token in zip(drawn, tokens, strict=True):
            chosen[i] = token
    return chosen


def _draw(logits: torch.Tensor, samplers: Sequence[Sampler]) -> list[int]:
    settings = [sampler.sampling for sampler in samplers]
    heat = torch.tensor([each.temperature for each in settings], device=logits.device)
    probabilities = (logits / heat[:, None]).softmax(-1)
    points = [sampler.point() for sampler in samplers]
    tokens = [-1] * len(samplers)
    whole = [i for i, each in enumerate(settings) if not _cuts(each, logits.shape[-1])]
    if whole:
        found = _invert(probabilities[whole], [points[i] for i in whole])
        for i, token in zip(whole, found, strict=True):
            tokens[i] = token
    rest = [i for i in range(len(samplers)) if tokens[i] < 0]
    if not rest:
        return tokens
    likeliest = min(_LIKELIEST, logits.shape[-1])
    ordered, ids = probabilities[rest].topk(likeliest, dim=-1)
    for row, i in enumerate(rest):
        cut = _cut(ordered[row], settings[i])
        where = ids[row]
        if cut is None:  # more tokens than were looked at
            every, where = probabilities[i].sort(descending=True, stable=True)
            cut = _cut(every, settings[i], is_all=True)
        assert cut is not None
        by_id = where[: len(cut)].argsort()  # rounding may swap tokens that are equally likely
        tokens[i] = int(where[by_id[_invert(cut[by_id][None], [points[i]])[0]]])
    return tokens


def _cuts(sampling: Sampling, vocabulary: int) -> bool:
    return sampling.top_p < 1 or 0 < sampling.top_k < vocabulary or sampling.min_p > 0


def _cut(ordered: torch.Tensor, sampling: Sampling, *, is_all: bool = False) -> torch.Tensor | None:
    """The probabilities that may be drawn, of the likeliest ones in descending order.

    None where those are too few to tell.
    """
    kept = ordered
    if sampling.min_p > 0:
        kept = kept.masked_fill(kept < sampling.min_p * kept[0], 0.0)
    if 0 < sampling.top_k <= len(kept):
        kept = kept[: sampling.top_k]
        is_all = True
    if sampling.min_p > 0 and not bool(kept[-1]):
        is_all = True
    if sampling.top_p >= 1:
        return kept if is_all else None
    if not is_all and (sampling.min_p > 0 or sampling.top_k > 0):
        return None  # what the nucleus is a part of is known of all tokens alone
    total = float(kept.sum()) if is_all else 1.0
    before = kept.cumsum(-1) - kept
    beyond = (before >= sampling.top_p * total) & (before > 0)
    if not is_all and not bool(beyond[-1]):
        return None
    return kept.masked_fill(beyond, 0.0)


def _invert(probabilities: torch.Tensor, points: Sequence[float]) -> list[int]:
    """The index where each row's cumulative probability passes its point of its total.

    probabilities: [n, m].
    """
    cumulative = probabilities.double().cumsum(-1)
    at = torch.tensor(points, dtype=torch.float64, device=cumulative.device)[:, None]
    index = torch.searchsorted(cumulative, cumulative[:, -1:] * at, right=True)[:, 0]
    # Rounding may pass the last that has a probability.
    last = probabilities.shape[-1] - 1 - (probabilities.flip(-1) > 0).int().argmax(-1)
    found: list[int] = torch.minimum(index, last).tolist()
    return found


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


def _seed_of(seed: int | None, index: int) -> int | None:
    """Seeds of the choices of one request are unrelated, also to those of the next seed."""
    if seed is None:
        return None
    digest = hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest)


def _finite(logprob: float) -> float:
    return max(logprob, _LOWEST_LOGPROB)
