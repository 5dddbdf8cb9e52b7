"""What operators measure of a worker: its attempts, their steps, leases, checkpoints and results.

Everything is counted in the worker's own process: what a trainer has to say comes up its pipe.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from engine.plan import Finished, Report, Started, Stepped
from jobs.errors import LeaseLost

FIRST_STEP_S = (1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
STEP_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
TRANSFER_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)


class Instruments:
    """One a worker, in the registry that its /metrics shows."""

    def __init__(self, registry: CollectorRegistry, *, queue: str = "default") -> None:
        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(f"luthier_{name}", about, labels, registry=registry)

        def gauge(name: str, about: str, *labels: str) -> Gauge:
            return Gauge(f"luthier_{name}", about, labels, registry=registry)

        def seconds(name: str, about: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(
                f"luthier_{name}_seconds", about, labels, buckets=buckets, registry=registry
            )

        gauge("worker_info", "1, for each worker, with the queue it serves.", "queue").labels(
            queue
        ).set(1)
        self.running = gauge("attempts_running", "Attempts under way in this worker.")
        self.started = counter("attempts_started", "Jobs claimed.", "method")
        self.ended = counter(
            "attempts_ended",
            "Attempts by outcome: succeeded, cancelled, released, lease_lost, abandoned, or the "
            "error's code.",
            *("method", "outcome"),
        )
        self.first_step = seconds(
            "attempt_first_step", "From the claim to the first step.", FIRST_STEP_S, "method"
        )
        self.step = seconds("training_step", "One step of the optimizer.", STEP_S, "method")
        self.tokens = counter("training_tokens", "Tokens that steps have read.", "method")
        self.peak_memory = gauge(
            "trainer_peak_memory_bytes",
            "The most memory that the last trainer to finish held: of the GPU where there is one.",
            "method",
        )
        self.leases_lost = counter(
            "leases_lost", "Attempts that found their lease gone, or could not renew it in time."
        )
        self.leases_expired = counter(
            "leases_expired",
            "Leases that this worker's sweep took from owners that had stopped renewing them.",
            "outcome",
        )
        for outcome in ("requeued", "given_up"):
            self.leases_expired.labels(outcome)
        self.publishes = counter("publishes", "Results published, by outcome.", "outcome")
        for outcome in ("ok", "failed"):
            self.publishes.labels(outcome)
        self.publish = seconds(
            "publish", "From a finished trainer to the adapter's row.", TRANSFER_S
        )
        self.checkpoints = counter("checkpoints", "Checkpoints stored, by outcome.", "outcome")
        for outcome in ("ok", "failed"):
            self.checkpoints.labels(outcome)
        self.checkpoint = seconds("checkpoint", "A checkpoint's way to the store.", TRANSFER_S)

    def swept(self, *, requeued: int, given_up: int) -> None:
        self.leases_expired.labels("requeued").inc(requeued)
        self.leases_expired.labels("given_up").inc(given_up)

    @contextmanager
    def publishing(self) -> Iterator[None]:
        with _counted(self.publishes, self.publish):
            yield

    @contextmanager
    def storing_checkpoint(self) -> Iterator[None]:
        with _counted(self.checkpoints, self.checkpoint):
            yield


@contextmanager
def _counted(outcomes: Counter, seconds: Histogram) -> Iterator[None]:
    """Time what goes well, and count it either way."""
    began = time.monotonic()
    try:
        yield
    except LeaseLost:
        outcomes.labels("lease_lost").inc()
        raise
    except BaseException:
        outcomes.labels("failed").inc()
        raise
    outcomes.labels("ok").inc()
    seconds.observe(time.monotonic() - began)


class Meter:
    """Reads one attempt from its claim on."""

    def __init__(self, instruments: Instruments, method: str) -> None:
        self._instruments, self._method = instruments, method
        self._claimed_at: float | None = time.monotonic()
        self._tokens: float | None = None  # so far; None: not known, of a run that was resumed
        self._open = True
        instruments.started.labels(method).inc()
        instruments.running.inc()

    def note(self, report: Report) -> None:
        if isinstance(report, Started) and report.resumed_step == 0:
            self._tokens = 0.0
        elif isinstance(report, Stepped):
            self._note_step(report)
        elif isinstance(report, Finished) and "peak_memory_bytes" in report.metrics:
            peak = report.metrics["peak_memory_bytes"]
            self._instruments.peak_memory.labels(self._method).set(peak)

    def _note_step(self, report: Stepped) -> None:
        if self._claimed_at is not None:
            waited = time.monotonic() - self._claimed_at
            self._instruments.first_step.labels(self._method).observe(waited)
            self._claimed_at = None
        self._instruments.step.labels(self._method).observe(report.seconds)
        tokens = report.metrics.get("num_tokens")
        if tokens is None:
            return
        if self._tokens is not None:
            self._instruments.tokens.labels(self._method).inc(max(0.0, tokens - self._tokens))
        self._tokens = tokens

    def end(self, outcome: str) -> None:
        """The first word counts: what comes after it is about clearing up."""
        if self._open:
            self._open = False
            self._instruments.ended.labels(self._method, outcome).inc()
            self._instruments.running.dec()
            if outcome == "lease_lost":
                self._instruments.leases_lost.inc()


def unmetered() -> Meter:
    """A meter whose numbers nobody sees."""
    return Meter(Instruments(CollectorRegistry()), "")
