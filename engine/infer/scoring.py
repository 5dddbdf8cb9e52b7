"""Answers on their way to their scores: what they begin with is fed once, then the rest of each."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch

from engine.infer.errors import GenerationFailed
from engine.infer.generator import Failed, Scored, ScoreRequest, Sink, Ticket
from engine.infer.head import scored_part


class Scoring:
    """All inputs of one request, fed piece by piece as prompts are; it takes one turn a round.

    Lives in the engine thread; only `ticket` is anyone else's.
    """

    def __init__(self, request: ScoreRequest, sink: Sink, prefill_chunk: int) -> None:
        self.request, self.ticket = request, Ticket()
        self._sink, self._chunk = sink, prefill_chunk
        pad = request.head.pad_token_id
        self._inputs = [scored_part(ids, pad) for ids in request.inputs]
        self._shared = shared_tokens(self._inputs)
        self._prefix: Any = None  # the attention state behind the shared tokens
        self._cache: Any = None  # that of the input at hand, or of the shared tokens themselves
        self._fed = 0  # tokens that this one holds
        self._scores: list[float] = []

    def step(self) -> bool:
        """One forward; False once the scores are sent."""
        ids = self._inputs[len(self._scores)]
        is_prefix = self._prefix is None and self._shared > 0
        end = self._shared if is_prefix else len(ids)
        if self._cache is None:
            self._cache = self._begin()
        fed = ids[self._fed : min(self._fed + self._chunk, end)]
        hidden = self.request.model.last_hidden(fed, self._cache, self.request.lora)
        self._fed += len(fed)
        if self._fed < end:
            return True
        if is_prefix:
            self._prefix, self._cache = self._cache, None
            return True
        self._scores.append(self._read(hidden))
        self._cache, self._fed = None, self._shared
        if len(self._scores) < len(self._inputs):
            return True
        self._sink(Scored(tuple(self._scores)))
        return False

    def fail(self, error: Exception) -> None:
        self._sink(Failed(error))

    def _begin(self) -> Any:
        """The attention state before the next token that is fed."""
        if self._prefix is None:
            return self.request.model.new_cache()
        return copy.deepcopy(self._prefix)

    def _read(self, hidden: torch.Tensor) -> float:
        score = self.request.head.score(hidden)
        if not math.isfinite(score):
            raise GenerationFailed(
                "The model's score is not a number: its training has diverged. Train it again at a "
                "lower learning rate.",
                code="model_diverged",
            )
        return score


def shared_tokens(inputs: Sequence[Sequence[int]]) -> int:
    """How many tokens all inputs begin with, of several; at least one of each is left to feed."""
    if len(inputs) < 2:
        return 0
    # Of all sequences, the first and the last in order have the least in common.
    first, last = min(map(list, inputs)), max(map(list, inputs))
    most = min(map(len, inputs)) - 1
    return next((i for i in range(most) if first[i] != last[i]), most)
