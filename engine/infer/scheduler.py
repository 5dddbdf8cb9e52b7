"""The one thread that runs the models: each round every batch takes a step, and so do the rest."""

import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Protocol
from weakref import WeakSet

import structlog
import torch
from tokenizers import Tokenizer

from engine.infer.alone import Alone
from engine.infer.batch import Batch
from engine.infer.errors import GenerationFailed
from engine.infer.generator import Failed, ScoreRequest, SequenceRequest, Sink, Ticket
from engine.infer.metrics import Metrics
from engine.infer.model import ServedModel
from engine.infer.scoring import Scoring
from engine.infer.sequence import Sequence
from engine.infer.waiting import Waiting

log = structlog.get_logger()


class Turn(Protocol):
    """What takes turns: a sequence that no batch takes, or a request for scores."""

    @property
    def request(self) -> SequenceRequest | ScoreRequest: ...
    @property
    def ticket(self) -> Ticket: ...
    def step(self) -> bool: ...
    def fail(self, error: Exception) -> None: ...


class Scheduler:
    """A Generator: sequences of one model share its forwards, whatever their adapters.

    `kv_tokens`: positions of attention state that a batch has, at least a context.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        metrics: Metrics,
        *,
        threads: int,
        max_running: int,
        prefill_chunk: int,
        kv_tokens: int,
    ) -> None:
        self._tokenizer, self._metrics, self._threads = tokenizer, metrics, threads
        self._max_running, self._prefill_chunk = max_running, prefill_chunk
        self._kv_tokens = kv_tokens
        self._wake = threading.Condition()  # guards the five below
        self._probes: deque[Sequence | Scoring] = deque()
        self._waiting = Waiting()
        self._scoring: deque[Scoring] = deque()
        self._gone: WeakSet[ServedModel] = WeakSet()
        self._stopping = False
        self._batches: dict[ServedModel, Batch] = {}  # these two are the engine thread's own
        self._turns: list[Turn] = []
        self._thread = threading.Thread(target=self._work, name="luthier-engine", daemon=True)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def running(self) -> int:
        """How many sequences and requests for scores have begun and are not over."""
        return len(self._turns) + sum(map(len, self._batches.values()))

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread within a step; sequences that are not done fail."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def submit(self, request: SequenceRequest | ScoreRequest, sink: Sink) -> Ticket:
        work = self._begun(request, sink)
        with self._wake:
            if self._stopping or not self.alive:
                sink(Failed(_stopped()))
                return work.ticket
            if request.ahead:
                self._probes.append(work)
            elif isinstance(work, Scoring):
                self._scoring.append(work)
            else:
                self._waiting.add(work)
            self._wake.notify()
        return work.ticket

    def forget(self, model: ServedModel) -> None:
        """Nobody will ask for this model again: its attention state goes once it is idle."""
        with self._wake:
            self._gone.add(model)
            self._wake.notify()

    def _begun(self, request: SequenceRequest | ScoreRequest, sink: Sink) -> Sequence | Scoring:
        if isinstance(request, ScoreRequest):
            return Scoring(request, sink, self._prefill_chunk)
        return Sequence(request, sink, self._tokenizer)

    def _work(self) -> None:
        torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                while self._admit():
                    for model, batch in self._batches.items():
                        self._step(model, batch)
                    self._turns = [turn for turn in self._turns if self._took(turn)]
        except BaseException:
            log.exception("engine.died")
            raise
        finally:
            self._fail_all()

    def _admit(self) -> bool:
        """Let sequences in, waiting while there is nothing to do; False: stop."""
        with self._wake:
            self._take_back()
            while not (self._stopping or self._has_work()):
                self._drop_gone()
                self._wake.wait()
            self._drop_gone()
            while self._probes and self._enters(self._probes[0]):
                self._probes.popleft()
            self._waiting.drop_cancelled()
            if not self._probes:  # else those who need less room would keep it from them for ever
                self._waiting.let_in(self._sequences(), self._has_room_for)
            while self._scoring and self.running < self._max_running:
                self._turns.append(self._scoring.popleft())
            return not self._stopping

    def _step(self, model: ServedModel, batch: Batch) -> None:
        try:
            batch.step()
        except Exception:  # the edge of these requests: their failure must not end the others
            log.exception("engine.batch_failed", model=model.name, sequences=len(batch))
            batch.fail(_failed())

    def _has_work(self) -> bool:
        return bool(self._probes or self._waiting or self._scoring or self.running)

    def _has_room_for(self, sequence: Sequence) -> bool:
        if self.running >= self._max_running or not self._enters(sequence):
            return False
        if not sequence.made:
            self._metrics.queue_seconds.observe(time.monotonic() - sequence.arrived)
        return True

    def _enters(self, work: Sequence | Scoring) -> bool:
        """Begin it, or fail it; False where its model's batch has no room for it now."""
        if isinstance(work, Scoring):
            self._turns.append(work)
            return True
        try:
            batch = self._batch_of(work.request.model)
            if batch is not None and batch.takes(work):
                return batch.join(work)
        except Exception:  # the edge of a request, such as memory that is not to be had
            log.exception("engine.sequence_failed", model=work.request.model.name)
            work.fail(_failed())
            return True
        if batch is not None:
            log.warning("engine.adapter_not_batched", model=work.request.model.name)
        self._turns.append(Alone(work, self._prefill_chunk))
        return True

    def _batch_of(self, model: ServedModel) -> Batch | None:
        if model not in self._batches and model.rows is not None:
            self._batches[model] = Batch(
                model,
                model.rows,
                tokens=max(self._kv_tokens, model.context_length + 1),
                max_rows=self._max_running,
                prefill_chunk=self._prefill_chunk,
                metrics=self._metrics,
            )
        return self._batches.get(model)

    def _take_back(self) -> None:
        """Sequences that lost their room wait again, before all others."""
        for batch in self._batches.values():
            for sequence in batch.turned_out:  # the youngest left first
                self._waiting.put_back(sequence)
            batch.turned_out.clear()

    def _drop_gone(self) -> None:
        for model in [model for model in self._gone if not self._batches.get(model)]:
            self._batches.pop(model, None)  # who still holds it may ask once more, and so on

    def _sequences(self) -> Iterator[Sequence]:
        for batch in self._batches.values():
            yield from batch.sequences

    def _took(self, turn: Turn) -> bool:
        """One step of what runs by itself; False: it is over."""
        if turn.ticket.cancelled:
            return False
        try:
            return turn.step()
        except GenerationFailed as error:
            turn.fail(error)
        except Exception:  # the edge of a request: its failure must not end the others
            log.exception("engine.sequence_failed", model=turn.request.model.name)
            turn.fail(_failed())
        return False

    def _fail_all(self) -> None:
        with self._wake:
            self._stopping = True
            self._take_back()
            for batch in self._batches.values():
                batch.fail(_stopped())
            for each in (*self._turns, *self._probes, *self._waiting, *self._scoring):
                each.fail(_stopped())
            self._turns.clear()
            self._probes.clear()
            self._waiting.clear()
            self._scoring.clear()


def _failed() -> GenerationFailed:
    return GenerationFailed("The model failed on this request; see the log.")


def _stopped() -> GenerationFailed:
    return GenerationFailed("The server is stopping; try again.", code="server_stopping")
