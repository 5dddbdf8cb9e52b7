"""METEOR: words that are equal, or equal when stemmed, with a price for their being scattered."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import pairwise

import snowballstemmer

from engine.graders.similarity.tokens import mteval

ALPHA, BETA, GAMMA = 0.9, 3.0, 0.5  # of the paper's equations, as NLTK has them
LONGEST_WORD = 64  # longer ones are no words to stem

Placed = list[tuple[int, str]]


def meteor(text: str, reference: str) -> float:
    """METEOR (Banerjee and Lavie 2005, https://aclanthology.org/W05-0909), 0 to 1.

    Modules "exact" and "porter stem", in lower case; without WordNet's synonyms, whose database
    is not part of this service. P R / (0.9 P + 0.1 R) × (1 - 0.5 (chunks / matches)³).
    """
    ours, theirs = mteval(text.lower()), mteval(reference.lower())
    if not ours or not theirs:
        return float(ours == theirs)
    pairs = _aligned(ours, theirs)
    if not pairs:
        return 0.0
    precision, recall = len(pairs) / len(ours), len(pairs) / len(theirs)
    mean = precision * recall / (ALPHA * precision + (1 - ALPHA) * recall)
    scattered: float = (_chunks(pairs) / len(pairs)) ** BETA
    return mean * (1 - GAMMA * scattered)


def _aligned(ours: list[str], theirs: list[str]) -> list[tuple[int, int]]:
    """Places in both texts of each matched word, in order of the first."""
    left, right = list(enumerate(ours)), list(enumerate(theirs))
    pairs = []
    for form in (str, _stem):
        found, left, right = _matched(left, right, form)
        pairs += found
    return sorted(pairs)


def _matched(
    left: Placed, right: Placed, form: Callable[[str], str]
) -> tuple[list[tuple[int, int]], Placed, Placed]:
    """Matches from the end, each word to the last free one of its form; and what is left over."""
    free: defaultdict[str, list[int]] = defaultdict(list)
    for place, word in right:
        free[form(word)].append(place)
    pairs = [
        (place, free[form(word)].pop()) for place, word in reversed(left) if free.get(form(word))
    ]
    return pairs, _without(left, (a for a, _ in pairs)), _without(right, (b for _, b in pairs))


def _without(placed: Placed, taken: Iterable[int]) -> Placed:
    gone = set(taken)
    return [(place, word) for place, word in placed if place not in gone]


def _chunks(pairs: list[tuple[int, int]]) -> int:
    """Runs of matches that are adjacent in both texts."""
    breaks = sum(b != (a[0] + 1, a[1] + 1) for a, b in pairwise(pairs))
    return 1 + breaks


@lru_cache(maxsize=65_536)
def _stem(word: str) -> str:
    """Porter's algorithm (1980). A stemmer of its own: a shared one is not safe among threads."""
    if len(word) > LONGEST_WORD:
        return word
    stemmed: str = snowballstemmer.stemmer("porter").stemWord(word)
    return stemmed
