"""fuzzy_match and ROUGE-L: the longest common subsequence of characters or words."""

from collections import defaultdict
from collections.abc import Hashable, Sequence

from engine.graders.similarity.ngrams import f1
from engine.graders.similarity.tokens import words


def fuzzy_match(text: str, reference: str) -> float:
    """2 LCS / (len + len) over characters, 0 to 1: rapidfuzz's `fuzz.ratio` / 100."""
    return f1(common(text, reference), len(text), len(reference))


def rouge_l(text: str, reference: str) -> float:
    """ROUGE-L (Lin 2004, https://aclanthology.org/W04-1013): F1 of the words' LCS, 0 to 1."""
    ours, theirs = words(text), words(reference)
    return f1(common(ours, theirs), len(ours), len(theirs))


def common(ours: Sequence[Hashable], theirs: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence.

    Bit-parallel (Hyyrö 2004, "Bit-Parallel LCS-length Computation Revisited"): a row of the table
    is one integer, whose zero bits count where the length grows.
    """
    places: defaultdict[Hashable, int] = defaultdict(int)
    for index, symbol in enumerate(ours):
        places[symbol] |= 1 << index
    full = row = (1 << len(ours)) - 1
    for symbol in theirs:
        if matches := places.get(symbol, 0):
            hits = row & matches
            row = ((row + hits) | (row - hits)) & full
    return len(ours) - row.bit_count()
