"""Keeps one lease alive from a thread of its own, and brings back what the client asks for."""

import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from typing import Protocol, TypeVar

import structlog

from jobs.errors import LeaseLost, StoreUnavailable
from jobs.model import Directive

log = structlog.get_logger()

T = TypeVar("T")

RETRY_S = 0.5


class Renews(Protocol):
    def renew(self, job_id: str, attempt: int) -> Directive:
        """What the client asked for. Raises LeaseLost and StoreUnavailable."""


class LeaseKeeper:
    """Renews until `close`. `lost` is set when the attempt may not write any more.

    A database that does not answer is tried again until the lease must have run out; then the
    attempt gives itself up, since another worker may have it.
    """

    def __init__(
        self, leases: Renews, job_id: str, attempt: int, *, heartbeat_s: float, lease_s: float
    ) -> None:
        self._leases, self._job_id, self._attempt = leases, job_id, attempt
        self._heartbeat_s, self._lease_s = heartbeat_s, lease_s
        self._closing = threading.Event()
        self.lost = threading.Event()
        self.directive: Directive = "continue"
        keep = copy_context().run  # so that what it logs has the attempt's ids
        self._thread = threading.Thread(
            target=keep, args=(self._keep,), daemon=True, name=f"lease {job_id}"
        )
        self._thread.start()

    def _keep(self) -> None:
        renewed_at = time.monotonic()
        while not self._closing.wait(self._heartbeat_s):
            try:
                asked_at = time.monotonic()
                self.directive = self._leases.renew(self._job_id, self._attempt)
                renewed_at = asked_at
            except LeaseLost:
                break
            except StoreUnavailable as error:
                if time.monotonic() - renewed_at > self._lease_s:
                    break
                log.warning("lease.renew_failed", job_id=self._job_id, error=str(error))
        else:
            return
        log.warning("lease.lost", job_id=self._job_id, attempt=self._attempt)
        self.lost.set()

    def insist(self, write: Callable[[], T]) -> T:
        """Write, and wait for a database that is away while the lease may still be ours.

        Raises StoreUnavailable once it may not be. A write that was done before its answer got
        lost is done again, so one that ends the attempt may raise LeaseLost although it counts.
        """
        while True:
            try:
                return write()
            except StoreUnavailable:
                if self.lost.wait(RETRY_S):
                    raise

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
