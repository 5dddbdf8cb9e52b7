"""Examples of one step as padded tensors, in the shapes that the trainers read."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from engine.train.examples import IGNORED, Example, Pair, Rated


def padded(examples: Sequence[Example], pad_token_id: int) -> dict[str, Tensor]:
    """`input_ids`, `attention_mask` and `completion_mask`, each [examples, longest]."""
    ids = [torch.tensor(example.input_ids) for example in examples]
    trained = [torch.tensor(example.labels) != IGNORED for example in examples]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_token_id),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "completion_mask": pad_sequence(trained, batch_first=True).long(),
    }


def pair_columns(pairs: Sequence[Pair]) -> dict[str, list[Any]]:
    """Pairs as the columns of a dataset."""
    return {
        "chosen_ids": [pair.chosen.input_ids for pair in pairs],
        "chosen_labels": [pair.chosen.labels for pair in pairs],
        "rejected_ids": [pair.rejected.input_ids for pair in pairs],
        "rejected_labels": [pair.rejected.labels for pair in pairs],
    }


class PairCollator:
    """All chosen answers of a batch, then all rejected ones, in the same order."""

    def __init__(self, pad_token_id: int) -> None:
        self._pad = pad_token_id

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        chosen = [Example(row["chosen_ids"], row["chosen_labels"]) for row in rows]
        rejected = [Example(row["rejected_ids"], row["rejected_labels"]) for row in rows]
        batch = padded(chosen + rejected, self._pad)
        for name in ("ref_chosen_logps", "ref_rejected_logps"):
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows])
        return batch


def rated_columns(rated: Sequence[Rated], batch_size: int) -> dict[str, list[Any]]:
    """Rated answers as the columns of a dataset that is read in this order.

    Each row has, beside its own answer, one that does not belong to its prompt: that of the row
    before it in the same batch. KTO estimates its KL term from these (Ethayarajh et al. 2024,
    section 4.1).
    """
    answers = [row.answer for row in rated]
    mixed: list[Example] = []
    for first in range(0, len(answers), batch_size):
        batch = answers[first : first + batch_size]
        others = batch[-1:] + batch[:-1]
        mixed += [_with(own, other) for own, other in zip(batch, others, strict=True)]
    return {
        "ids": [answer.input_ids for answer in answers],
        "labels": [answer.labels for answer in answers],
        "KL_ids": [answer.input_ids for answer in mixed],
        "KL_labels": [answer.labels for answer in mixed],
        "label": [row.label for row in rated],
    }


class RatedCollator:
    """Answers with their labels, and under `KL_` those that do not belong."""

    def __init__(self, pad_token_id: int) -> None:
        self._pad = pad_token_id

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        answers = [Example(row["ids"], row["labels"]) for row in rows]
        mixed = [Example(row["KL_ids"], row["KL_labels"]) for row in rows]
        batch = padded(answers, self._pad)
        batch |= {f"KL_{name}": tensor for name, tensor in padded(mixed, self._pad).items()}
        batch["label"] = torch.tensor([row["label"] for row in rows])
        for name in ("ref_logps", "ref_KL_logps"):
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows])
        return batch


def _with(own: Example, other: Example) -> Example:
    """The prompt of one and the answer of the other."""
    ids = own.input_ids[: own.start] + other.input_ids[other.start :]
    return Example(ids, own.labels[: own.start] + other.labels[other.start :])
