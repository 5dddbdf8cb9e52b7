"""How many sequences the server holds at once, running and waiting, whatever they are for."""

from collections.abc import Iterator
from contextlib import contextmanager

from engine.infer.errors import QueueFull, RequestInvalid
from engine.infer.metrics import Metrics


class Admission:
    """At most max_running + max_waiting sequences. Lives on the event loop."""

    def __init__(self, metrics: Metrics, *, max_running: int, max_waiting: int) -> None:
        self._metrics = metrics
        self._max_running, self._max_sequences = max_running, max_running + max_waiting
        self._held = 0

    @contextmanager
    def hold(self, sequences: int, *, param: str) -> Iterator[None]:
        """Count them for as long as their request lasts; `param` is the field that makes many.

        Raises QueueFull, and RequestInvalid where they are too many for an idle server.
        """
        if sequences > self._max_sequences:
            raise RequestInvalid(
                f"{sequences} sequences are more than this server holds at once "
                f"({self._max_sequences}); send less in one request.",
                param=param,
                code="too_many_choices",
            )
        if self._held + sequences > self._max_sequences:
            waiting = max(self._held - self._max_running, 0)
            raise QueueFull(waiting, retry_after_s=1 + waiting // self._max_running)
        self._change(sequences)
        try:
            yield
        finally:
            self._change(-sequences)

    def _change(self, sequences: int) -> None:
        self._held += sequences
        self._metrics.sequences.set(self._held)
