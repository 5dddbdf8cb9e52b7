"""Claims jobs and runs their attempts, one at a time; every failure becomes the job's."""

import shutil
from pathlib import Path

import structlog

from jobs.attempt import Attempt, AttemptFailed, Workshop
from jobs.errors import LeaseLost, StoreUnavailable
from jobs.keeper import LeaseKeeper
from jobs.model import Claim, JobError
from storage.objects import StorageError

log = structlog.get_logger()


class Runner:
    """Runs attempts in folders of their own under `work_root`."""

    def __init__(
        self, shop: Workshop, *, owner: str, work_root: Path, heartbeat_s: float, lease_s: float
    ) -> None:
        self._shop, self._owner, self._work_root = shop, owner, work_root
        self._heartbeat_s, self._lease_s = heartbeat_s, lease_s

    def run_next(self, queue: str) -> bool:
        """Claim the best queued job and run it to its end; False when there was none."""
        if self._shop.draining.is_set():
            return False
        claim = self._shop.store.leases.claim(self._owner, queue)
        if claim is None:
            return False
        with structlog.contextvars.bound_contextvars(
            job_id=claim.job.id, attempt=claim.job.attempt
        ):
            log.info("job.claimed")
            try:
                self._run(claim)
            except LeaseLost as lost:
                log.warning("attempt.abandoned", reason=str(lost))
            except StoreUnavailable as error:
                log.error("attempt.abandoned", reason=str(error))  # the sweep will find the lease
        return True

    def _run(self, claim: Claim) -> None:
        job, leases = claim.job, self._shop.store.leases
        work_dir = self._work_root / f"{job.id}-{job.attempt}"
        work_dir.mkdir(parents=True)
        keeper = LeaseKeeper(
            leases, job.id, job.attempt, heartbeat_s=self._heartbeat_s, lease_s=self._lease_s
        )
        try:
            Attempt(self._shop, claim, keeper, work_dir).run()
        except AttemptFailed as failure:
            log.warning("attempt.failed", code=failure.error.code, retryable=failure.retryable)
            end = leases.retry if failure.retryable else leases.fail
            end(job.id, job.attempt, failure.error)
        except StorageError as error:
            log.warning("attempt.failed", code="storage_error", error=str(error))
            message = f"The object store failed: {error}"
            leases.retry(job.id, job.attempt, JobError(code="storage_error", message=message))
        except OSError as error:
            log.exception("attempt.failed", code="disk_error")
            message = f"The worker's disk failed: {error.strerror or error}"
            leases.retry(job.id, job.attempt, JobError(code="disk_error", message=message))
        finally:
            keeper.close()
            shutil.rmtree(work_dir, ignore_errors=True)
