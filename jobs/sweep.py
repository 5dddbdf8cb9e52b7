"""The sweep: takes back jobs whose lease ran out, moves pipelines on, and wakes workers for jobs
that wait.
"""

import threading
import time

import structlog

from jobs.errors import StoreUnavailable
from jobs.instruments import Instruments
from jobs.queue import WakeUps
from jobs.store import Store

log = structlog.get_logger()

MOST_WAKEUPS = 100  # a sweep; a woken worker takes jobs until there are none


class Sweep:
    """Runs in a thread until `close`. Any number of workers may sweep the same table."""

    def __init__(
        self,
        store: Store,
        wakeups: WakeUps,
        queue: str,
        *,
        expire_s: float,
        wake_s: float,
        instruments: Instruments | None = None,
    ) -> None:
        self._instruments = instruments
        self._leases, self._pipelines = store.leases, store.pipelines
        self._wakeups, self._queue = wakeups, queue
        self._expire_s, self._wake_s = expire_s, wake_s
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True, name="sweep")

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def _loop(self) -> None:
        expire_at = 0.0
        while not self._closing.wait(self._wake_s):
            try:
                if time.monotonic() >= expire_at:
                    expire_at = time.monotonic() + self._expire_s
                    self.expire()
                self.move()
                self.wake()
            except (StoreUnavailable, ConnectionError) as error:
                log.warning("sweep.failed", error=str(error))
                self._closing.wait(1.0)
            except Exception:  # without the sweep, nothing that waits would ever run
                log.exception("sweep.broken")
                self._closing.wait(1.0)

    def expire(self) -> None:
        """Queue again, or give up, what nobody keeps alive."""
        swept = self._leases.sweep()
        if self._instruments is not None:
            self._instruments.swept(requeued=len(swept.requeued), given_up=len(swept.failed))
        for job_id in swept.requeued:
            log.warning("job.requeued", job_id=job_id)
        for job_id in swept.failed:
            log.warning("job.given_up", job_id=job_id)

    def move(self) -> None:
        """Queue and skip stages, where their worker or their client did not get to it."""
        for pipeline_id in self._pipelines.unmoved():
            try:
                self._pipelines.move(pipeline_id)
            except StoreUnavailable:
                raise
            except Exception:  # one that is broken must not hold up the others
                log.exception("pipeline.broken", pipeline_id=pipeline_id)

    def wake(self) -> None:
        """Send as many wake-ups as jobs wait, less those that are on their way already."""
        queued = min(self._leases.queued(self._queue), MOST_WAKEUPS)
        if queued:
            for _ in range(queued - self._wakeups.waiting(self._queue)):
                self._wakeups.wake(self._queue)
