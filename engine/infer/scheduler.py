"""The one thread that runs the models: every live sequence takes one step a round."""

import threading
from collections import deque
from typing import Protocol

import structlog
import torch
from tokenizers import Tokenizer

from engine.infer.errors import GenerationFailed
from engine.infer.generator import Failed, ScoreRequest, SequenceRequest, Sink, Ticket
from engine.infer.scoring import Scoring
from engine.infer.sequence import Sequence

log = structlog.get_logger()


class Work(Protocol):
    """What takes turns: a sequence that generates, or a request for scores."""

    @property
    def request(self) -> SequenceRequest | ScoreRequest: ...
    @property
    def ticket(self) -> Ticket: ...
    def step(self) -> bool: ...
    def fail(self, error: Exception) -> None: ...


class Scheduler:
    """A Generator that gives each sequence a forward of its own, so none can change another's."""

    def __init__(
        self, tokenizer: Tokenizer, *, threads: int, max_running: int, prefill_chunk: int
    ) -> None:
        self._tokenizer, self._threads = tokenizer, threads
        self._max_running, self._prefill_chunk = max_running, prefill_chunk
        self._wake = threading.Condition()  # guards the three below
        self._probes: deque[Work] = deque()
        self._waiting: deque[Work] = deque()
        self._stopping = False
        self._running: list[Work] = []  # the engine thread's own
        self._thread = threading.Thread(target=self._work, name="luthier-engine", daemon=True)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def running(self) -> int:
        return len(self._running)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread within a step; sequences that are not done fail."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def submit(self, request: SequenceRequest | ScoreRequest, sink: Sink) -> Ticket:
        sequence = self._begun(request, sink)
        with self._wake:
            if self._stopping or not self.alive:
                sink(Failed(_stopped()))
                return sequence.ticket
            (self._probes if request.ahead else self._waiting).append(sequence)
            self._wake.notify()
        return sequence.ticket

    def _begun(self, request: SequenceRequest | ScoreRequest, sink: Sink) -> Work:
        if isinstance(request, ScoreRequest):
            return Scoring(request, sink, self._prefill_chunk)
        return Sequence(request, sink, self._tokenizer, self._prefill_chunk)

    def _work(self) -> None:
        torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                while self._admit():
                    self._running = [each for each in self._running if self._turn(each)]
        except BaseException:
            log.exception("engine.died")
            raise
        finally:
            self._fail_all()

    def _admit(self) -> bool:
        """Let sequences in, waiting while there is nothing to do; False: stop."""
        with self._wake:
            while not (self._stopping or self._probes or self._waiting or self._running):
                self._wake.wait()
            self._running += self._probes
            self._probes.clear()
            self._waiting = deque(each for each in self._waiting if not each.ticket.cancelled)
            while self._waiting and len(self._running) < self._max_running:
                self._running.append(self._waiting.popleft())
            return not self._stopping

    def _turn(self, sequence: Work) -> bool:
        """One step of one sequence; False: it is over."""
        if sequence.ticket.cancelled:
            return False
        try:
            return sequence.step()
        except GenerationFailed as error:
            sequence.fail(error)
        except Exception:  # the edge of a request: its failure must not end the others
            log.exception("engine.sequence_failed", model=sequence.request.model.name)
            sequence.fail(GenerationFailed("The model failed on this request; see the log."))
        return False

    def _fail_all(self) -> None:
        with self._wake:
            self._stopping = True
            for sequence in (*self._running, *self._probes, *self._waiting):
                sequence.fail(_stopped())
            self._running.clear()
            self._probes.clear()
            self._waiting.clear()


def _stopped() -> GenerationFailed:
    return GenerationFailed("The server is stopping; try again.", code="server_stopping")
