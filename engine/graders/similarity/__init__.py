"""The measures of likeness between a text and a reference, by OpenAI's names. All are 0 to 1.

Two texts without a single word are alike (1); one of them without words is like nothing (0).
"""

from collections.abc import Callable
from typing import Literal

from engine.graders.similarity.meteor import meteor
from engine.graders.similarity.ngrams import bleu, gleu, rouge_n
from engine.graders.similarity.subsequences import fuzzy_match, rouge_l

Metric = Literal[
    "fuzzy_match",
    "bleu",
    "gleu",
    "meteor",
    "rouge_1",
    "rouge_2",
    "rouge_3",
    "rouge_4",
    "rouge_5",
    "rouge_l",
]

METRICS: dict[Metric, Callable[[str, str], float]] = {
    "fuzzy_match": fuzzy_match,
    "bleu": bleu,
    "gleu": gleu,
    "meteor": meteor,
    "rouge_1": rouge_n(1),
    "rouge_2": rouge_n(2),
    "rouge_3": rouge_n(3),
    "rouge_4": rouge_n(4),
    "rouge_5": rouge_n(5),
    "rouge_l": rouge_l,
}
