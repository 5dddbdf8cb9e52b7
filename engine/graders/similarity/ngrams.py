"""BLEU, GLEU and ROUGE-N: how many n-grams two texts share."""

import math
from collections import Counter
from collections.abc import Callable, Sequence

from engine.graders.similarity.tokens import mteval, words

MAX_N = 4


def bleu(text: str, reference: str) -> float:
    """Sentence BLEU (Papineni et al. 2002, https://aclanthology.org/P02-1040), 0 to 1.

    n up to 4 or to the text's length, and orders without a match count 1/2, 1/4, ... of one
    (exponential smoothing, Chen and Cherry 2014, method 3): sacrebleu's `effective_order`.
    """
    ours, theirs = mteval(text), mteval(reference)
    if not _shared(ours, theirs, 1):
        return float(ours == theirs)
    logs, misses = [], 0
    for n in range(1, min(MAX_N, len(ours)) + 1):
        shared = float(_shared(ours, theirs, n))
        if not shared:
            misses += 1
            shared = 0.5**misses
        logs.append(math.log(shared / (len(ours) - n + 1)))
    brevity = min(0.0, 1 - len(theirs) / len(ours))
    return min(1.0, math.exp(brevity + math.fsum(logs) / len(logs)))


def gleu(text: str, reference: str) -> float:
    """Google's sentence score (Wu et al. 2016, https://arxiv.org/abs/1609.08144, section 6).

    The lower of precision and recall over all 1- to 4-grams together; 0 to 1.
    """
    ours, theirs = mteval(text), mteval(reference)
    orders = range(1, MAX_N + 1)
    shared = sum(_shared(ours, theirs, n) for n in orders)
    size = max(sum(max(0, len(side) - n + 1) for n in orders) for side in (ours, theirs))
    return shared / size if size else 1.0


def rouge_n(n: int) -> Callable[[str, str], float]:
    """ROUGE-N (Lin 2004, https://aclanthology.org/W04-1013): F1 of the n-grams, 0 to 1.

    Texts of fewer than n words have no n-gram: they score 1 when their words are the same, else 0.
    """

    def score(text: str, reference: str) -> float:
        ours, theirs = words(text), words(reference)
        if max(len(ours), len(theirs)) < n:
            return float(ours == theirs)
        sizes = (max(0, len(side) - n + 1) for side in (ours, theirs))
        return f1(_shared(ours, theirs, n), *sizes)

    return score


def f1(shared: int, ours: int, theirs: int) -> float:
    """2PR / (P + R) of counts; two empty sides are alike."""
    return 2 * shared / (ours + theirs) if ours + theirs else 1.0


def _shared(ours: Sequence[str], theirs: Sequence[str], n: int) -> int:
    """n-grams that both have, each as often as the one that has fewer of it."""
    return (_grams(ours, n) & _grams(theirs, n)).total()


def _grams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(tokens[start:] for start in range(n)), strict=False))
