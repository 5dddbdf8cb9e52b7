"""Packs documents into rows: whole documents only, each sees itself only, hardly any padding."""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from .mixture import Document, document, first_lesson, second_lesson
from .tokenizer import END, PAD, render

SHORT, LONG = 128, 512
ROW_TOKENS = 4096
PROMPT_WEIGHT = 0.1


@dataclass(frozen=True)
class Batch:
    """ids, targets, weights [rows, length]; mask [rows, 1, length, length], added to the scores."""

    ids: Tensor
    targets: Tensor
    weights: Tensor
    mask: Tensor


def weigh(ids: list[int], tokenizer: Tokenizer) -> list[float]:
    """The loss weight of each token: the prompts of a chat count less than what answers them."""
    answer, raw = tokenizer.token_to_id("<|assistant|>"), tokenizer.token_to_id("<|user|>")
    end = tokenizer.token_to_id(END)
    chat = raw in ids
    weights, inside = [], not chat
    for token in ids:
        weights.append(1.0 if inside else PROMPT_WEIGHT)
        if chat:
            inside = token == answer or (inside and token != end)
    return weights


class Packer:
    """Rows of one length, filled first-fit from a stream of documents."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.rows = ROW_TOKENS // length
        self.open: list[list[list[int]]] = [[]]
        self.full: list[list[list[int]]] = []

    def add(self, ids: list[int]) -> None:
        for row in self.open:
            if sum(map(len, row)) + len(ids) <= self.length + 1:
                row.append(ids)
                break
        else:
            self.open.append([ids])
        if len(self.open) > 24:
            fullest = max(range(len(self.open)), key=lambda i: sum(map(len, self.open[i])))
            self.full.append(self.open.pop(fullest))

    def ready(self) -> bool:
        return len(self.full) >= self.rows

    def take(self, tokenizer: Tokenizer) -> Batch:
        rows, self.full = self.full[: self.rows], self.full[self.rows :]
        return collate(rows, self.length, tokenizer)


def collate(rows: list[list[list[int]]], length: int, tokenizer: Tokenizer) -> Batch:
    ids = torch.full((len(rows), length + 1), tokenizer.token_to_id(PAD))
    weights = torch.zeros(len(rows), length + 1)
    segments = torch.zeros(len(rows), length + 1, dtype=torch.int32)
    for r, row in enumerate(rows):
        at = 0
        for n, doc in enumerate(row, 1):
            ids[r, at : at + len(doc)] = torch.tensor(doc)
            weights[r, at : at + len(doc)] = torch.tensor(weigh(doc, tokenizer))
            weights[r, at] = 0.0
            segments[r, at : at + len(doc)] = n
            at += len(doc)
    seen = segments[:, :-1]
    same = (seen[:, :, None] == seen[:, None, :]) & torch.ones(length, length).tril().bool()
    mask = torch.zeros(same.shape, dtype=torch.bfloat16).masked_fill(~same, float("-inf"))
    return Batch(ids[:, :-1], ids[:, 1:], weights[:, 1:], mask[:, None])


def stream(tokenizer: Tokenizer, seed: str, lessons: tuple[int, int, int]) -> Iterator[Batch]:
    """Batches for ever, long rows whenever enough are full. `lessons`: how many batches there are
    when the first lesson ends, when the second ends, and when copying goes from three quarters of
    the tasks to half of them."""
    rng = random.Random(seed)
    short, long = Packer(SHORT), Packer(LONG)
    for given in itertools.count():
        while not (long.ready() or short.ready()):
            texts = [render(_document(rng, given, lessons)) for _ in range(64)]
            for encoded in tokenizer.encode_batch(texts, add_special_tokens=False):
                if len(encoded.ids) <= LONG:
                    (short if len(encoded.ids) <= SHORT else long).add(encoded.ids)
        yield (long if long.ready() else short).take(tokenizer)


def _document(rng: random.Random, given: int, lessons: tuple[int, int, int]) -> Document:
    first, second, copying = lessons
    if given < first:
        return first_lesson(rng)
    if given < second:
        return second_lesson(rng)
    return document(rng, 0.75 if given < copying else 0.5)
