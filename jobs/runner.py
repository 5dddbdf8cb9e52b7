"""Claims jobs and runs their attempts, one at a time; every failure becomes the job's."""

import errno
import shutil
from pathlib import Path

import structlog
from opentelemetry.trace import get_current_span

from jobs.attempt import Attempt, AttemptFailed, Workshop
from jobs.checkpoints import CheckpointCorrupt
from jobs.errors import LeaseLost, StoreUnavailable
from jobs.instruments import Meter
from jobs.keeper import LeaseKeeper
from jobs.model import Claim, JobError
from jobs.tracing import below, fail, span
from storage.crash import crash_point
from storage.objects import ObjectNotFound, StorageError, StorageUnavailable

log = structlog.get_logger()

STORAGE_PAUSE_S = 1.0  # before the store is asked again


class Runner:
    """Runs attempts in folders of their own under `work_root`."""

    def __init__(
        self, shop: Workshop, *, owner: str, work_root: Path, heartbeat_s: float, lease_s: float
    ) -> None:
        self._shop, self._owner, self._work_root = shop, owner, work_root
        self._heartbeat_s, self._lease_s = heartbeat_s, lease_s

    def run_next(self, queue: str) -> bool:
        """Claim the best queued job and run it to its end; False when there was none.

        Also False, and nothing is claimed, while the object store is away: no job could begin.
        """
        if self._shop.draining.is_set() or not self._storage_answers():
            return False
        claim = self._shop.store.leases.claim(self._owner, queue)
        if claim is None:
            return False
        self._run_claimed(claim)
        return True

    def run_attempt(self, job_id: str, attempt: int) -> bool:
        """Run this attempt of this job to its end; False, and nothing done, when it is not ours.

        Waits for a database or an object store that is away; also False when told to drain before
        either is back.
        """
        while not self._shop.draining.is_set():
            try:
                if not self._storage_answers():
                    continue
                claim = self._shop.store.leases.claim_attempt(self._owner, job_id, attempt)
            except StoreUnavailable as error:
                log.warning("attempt.waits", job_id=job_id, error=str(error))
                self._shop.draining.wait(STORAGE_PAUSE_S)
                continue
            if claim is None:
                return False
            self._shop.launcher.warm_up()
            self._run_claimed(claim)
            return True
        return False

    def _run_claimed(self, claim: Claim) -> None:
        job, origin = claim.job, claim.origin
        with (
            structlog.contextvars.bound_contextvars(
                request_id=origin.request_id, job_id=job.id, attempt=job.attempt
            ),
            span("attempt", parent=below(origin.traceparent), job_id=job.id, attempt=job.attempt),
        ):
            log.info("job.claimed", method=job.spec.method.type)
            crash_point("claimed")
            self._hold(claim)
            self._move_on(job.pipeline_id)

    def _hold(self, claim: Claim) -> None:
        """Run the attempt; what ends it is the job's, unless it is not ours to write any more."""
        meter = Meter(self._shop.instruments, claim.job.spec.method.type)
        try:
            self._run(claim, meter)
        except LeaseLost as lost:
            log.warning("attempt.abandoned", reason=str(lost))
            meter.end("lease_lost")
        except StoreUnavailable as error:
            log.error("attempt.abandoned", reason=str(error))  # the sweep will find the lease
        finally:
            meter.end("abandoned")

    def _move_on(self, pipeline_id: str | None) -> None:
        """Queue at once what waited for this job; what cannot be done now, the sweep does."""
        if pipeline_id is None:
            return
        try:
            self._shop.store.pipelines.move(pipeline_id)
        except StoreUnavailable as error:
            log.warning("pipeline.not_moved", pipeline_id=pipeline_id, error=str(error))

    def _storage_answers(self) -> bool:
        try:
            self._shop.objects.ping()
        except StorageError as error:
            log.warning("worker.storage_unavailable", error=str(error))
            self._shop.draining.wait(STORAGE_PAUSE_S)
            return False
        return True

    def _run(self, claim: Claim, meter: Meter) -> None:
        job, leases = claim.job, self._shop.store.leases
        work_dir = self._work_root / f"{job.id}-{job.attempt}"
        keeper = LeaseKeeper(
            leases, job.id, job.attempt, heartbeat_s=self._heartbeat_s, lease_s=self._lease_s
        )
        try:
            work_dir.mkdir(parents=True)
            Attempt(self._shop, claim, keeper, work_dir, meter).run()
        except (LeaseLost, StoreUnavailable):
            raise
        except Exception as error:  # the edge of a message: every failure becomes the job's
            failure = _failure_of(error)
            log.warning("attempt.failed", code=failure.error.code, retryable=failure.retryable)
            meter.end(failure.error.code)
            fail(get_current_span(), failure.error.code)
            end = leases.retry if failure.retryable else leases.fail
            keeper.insist(lambda: end(job.id, job.attempt, failure.error))
        finally:
            keeper.close()
            shutil.rmtree(work_dir, ignore_errors=True)


def _failure_of(error: Exception) -> AttemptFailed:
    """What the client is told, and whether to try again."""
    if isinstance(error, AttemptFailed):
        return error
    if isinstance(error, StorageError):
        code, message = "storage_error", _of_storage(error)
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        code = "disk_full"
        message = "The worker's disk is full; the operator has to make room on it."
    elif isinstance(error, OSError):
        code, message = "disk_error", f"The worker's disk failed: {error.strerror or error}"
    else:
        code = "internal_error"
        message = f"The worker failed with {type(error).__name__}; the operator's log says more."
    log.error("attempt.broken", code=code, exc_info=error)
    return AttemptFailed(JobError(code=code, message=message), retryable=True)


def _of_storage(error: StorageError) -> str:
    """Without keys, paths and buckets, which are the operator's."""
    match error:
        case CheckpointCorrupt():
            return f"{error}."
        case ObjectNotFound():
            return "Something this job needs is gone from the object store; ask the operator."
        case StorageUnavailable():
            return "The object store did not answer in time."
    return "The object store refused what this job needs; the operator's log says why."
