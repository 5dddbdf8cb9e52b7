"""The other machines of an attempt on several: they share its work, and say nothing of it."""

import shutil
from pathlib import Path

import structlog

from jobs.attempt import Attempt, Workshop
from jobs.errors import LeaseLost, StoreUnavailable
from jobs.exit_codes import Exit
from jobs.keeper import LeaseKeeper
from jobs.leases import Leases
from jobs.model import TERMINAL, Claim, Directive

log = structlog.get_logger()

POLL_S = 1.0


class Looking:
    """Leases that are looked at and never renewed: the first machine's word alone keeps them."""

    def __init__(self, leases: Leases) -> None:
        self._leases = leases

    def renew(self, job_id: str, attempt: int) -> Directive:
        return self._leases.heed(job_id, attempt)


def follow(
    shop: Workshop,
    job_id: str,
    attempt: int,
    *,
    work_root: Path,
    heartbeat_s: float,
    lease_s: float,
) -> Exit:
    """Wait until the first machine has claimed the attempt, then do this machine's share of it."""
    claim = _claimed(shop, job_id, attempt)
    if claim is None:
        return Exit.RETRYABLE if shop.draining.is_set() else Exit.SUPERSEDED
    shop.launcher.warm_up()
    looking = Looking(shop.store.leases)
    keeper = LeaseKeeper(looking, job_id, attempt, heartbeat_s=heartbeat_s, lease_s=lease_s)
    work_dir = work_root / f"{job_id}-{attempt}"
    work_dir.mkdir(parents=True)
    try:
        went_well = Attempt(shop, claim, keeper, work_dir).share()
    except LeaseLost:  # the first machine has ended it
        return Exit.DONE
    finally:
        keeper.close()
        shutil.rmtree(work_dir, ignore_errors=True)
    return Exit.DONE if went_well else Exit.RETRYABLE


def _claimed(shop: Workshop, job_id: str, attempt: int) -> Claim | None:
    """What the first machine was given; None once this attempt cannot be claimed any more."""
    while not shop.draining.is_set():
        try:
            job = shop.store.dispatches.find([job_id]).get(job_id)
            if job is None or job.attempt > attempt or job.status in TERMINAL:
                return None
            return shop.store.leases.look(job_id, attempt)
        except (LeaseLost, StoreUnavailable) as error:
            log.info("attempt.follows", job_id=job_id, reason=str(error))
            shop.draining.wait(POLL_S)
    return None
