"""A sequence with a cache and forwards of its own: for models and adapters that no batch takes."""

from typing import Any

from engine.infer.generator import SequenceRequest, Ticket
from engine.infer.sampling import choose
from engine.infer.sequence import Sequence, are_numbers, diverged


class Alone:
    """Takes turns with others. Lives in the engine thread."""

    def __init__(self, sequence: Sequence, prefill_chunk: int) -> None:
        self._sequence, self._chunk = sequence, prefill_chunk
        self._cache: Any = None  # made with the first forward

    @property
    def request(self) -> SequenceRequest:
        return self._sequence.request

    @property
    def ticket(self) -> Ticket:
        return self._sequence.ticket

    def step(self) -> bool:
        """One forward, and the token it gives; False when the sequence is over."""
        sequence, request = self._sequence, self.request
        if self._cache is None:
            self._cache = request.model.new_cache(request.virtual_tokens)
        piece = sequence.piece(self._chunk) or [sequence.last_token]
        keep = len(piece) if sequence.waiting and sequence.scores_prompt else 1
        logits = request.model.forward(piece, self._cache, request.lora, keep=keep)
        if not all(are_numbers(logits)):
            raise diverged()
        if sequence.waiting:
            if not sequence.fed(len(piece), logits):
                return False
            if sequence.waiting:
                return True
        token = choose(logits[-1:], [sequence.sampler])[0]
        return sequence.take(token, logits[-1])

    def fail(self, error: Exception) -> None:
        self._sequence.fail(error)
