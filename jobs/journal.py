"""Collects what a child reports and writes it in few transactions, in order, fenced."""

import time

from engine.plan import Stepped
from jobs.errors import StoreUnavailable
from jobs.leases import Leases
from jobs.model import Job, NewEvent, Progress

FLUSH_S = 0.25


class Journal:
    """Events wait here for at most FLUSH_S, or until the database answers again."""

    def __init__(self, leases: Leases, job: Job) -> None:
        self._leases, self._job = leases, job
        self._events: list[NewEvent] = []
        self._progress: Progress | None = None
        self._first_step = False
        self._seen_step = False
        self._due_at = 0.0

    def add(self, event: NewEvent, progress: Progress | None = None) -> None:
        self._events.append(event)
        self._progress = progress or self._progress

    def step(self, report: Stepped) -> None:
        """One optimizer step; the attempt's first is written at once."""
        data = {"step": report.step, **report.metrics}
        loss = report.metrics.get("loss")
        text = f"step {report.step}/{report.total_steps}"
        message = text if loss is None else f"{text}, loss {loss:.4f}"
        progress = Progress(
            step=report.step, total_steps=report.total_steps, epoch=report.epoch, loss=loss
        )
        self.add(NewEvent(type="metrics", message=message, data=data), progress)
        if not self._seen_step:
            self._seen_step = self._first_step = True
            self._due_at = 0.0

    def flush_when_due(self) -> None:
        """Write if it is time. A database that is away is waited for: nothing is dropped."""
        if self._events and time.monotonic() >= self._due_at:
            try:
                self.flush()
            except StoreUnavailable:
                self._due_at = time.monotonic() + 1.0

    def flush(self) -> None:
        """Write what has been collected. Raises LeaseLost and StoreUnavailable."""
        if not self._events:
            return
        self._leases.record(
            self._job.id,
            self._job.attempt,
            self._events,
            self._progress,
            first_step=self._first_step,
        )
        self._events, self._progress, self._first_step = [], None, False
        self._due_at = time.monotonic() + FLUSH_S
