"""One answer on its way to its score: fed piece by piece, as prompts are, and read at its end."""

import math
from typing import Any

import torch

from engine.infer.errors import GenerationFailed
from engine.infer.generator import Failed, Scored, ScoreRequest, Sink, Ticket
from engine.infer.head import scored_part


class ScoredSequence:
    """Lives in the engine thread; only `ticket` is anyone else's."""

    def __init__(self, request: ScoreRequest, sink: Sink, prefill_chunk: int) -> None:
        self.request, self.ticket = request, Ticket()
        self._sink, self._chunk = sink, prefill_chunk
        self._ids = scored_part(request.token_ids, request.head.pad_token_id)
        self._cache: Any = None  # made with the first forward
        self._fed = 0

    def step(self) -> bool:
        """One forward; False once the score is sent."""
        request = self.request
        if self._cache is None:
            self._cache = request.model.new_cache()
        fed = self._ids[self._fed : self._fed + self._chunk]
        hidden = request.model.last_hidden(fed, self._cache, request.lora)
        self._fed += len(fed)
        if self._fed < len(self._ids):
            return True
        self._sink(Scored(self._read(hidden)))
        return False

    def fail(self, error: Exception) -> None:
        self._sink(Failed(error))

    def _read(self, hidden: torch.Tensor) -> float:
        score = self.request.head.score(hidden)
        if not math.isfinite(score):
            raise GenerationFailed(
                "The model's score is not a number: its training has diverged. Train it again at a "
                "lower learning rate.",
                code="model_diverged",
            )
        return score
