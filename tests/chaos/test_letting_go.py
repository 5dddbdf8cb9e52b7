"""SIGTERM and cancel: a job is let go of in time, with one outcome."""

import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor

from jobs.errors import Conflict
from jobs.model import Status
from tests import clock
from tests.chaos.conftest import Make
from tests.chaos.house import ChaosHouse, wait_until
from tests.chaos.trainer import Script
from tests.record import Record

CANCELS = 100


def test_a_worker_that_is_told_to_stop_hands_its_job_to_another(
    production: Make, record: Record
) -> None:
    house = production(lease_s=60.0, heartbeat_s=1.0)
    job_id = house.post(Script(steps=40, step_s=0.05), checkpoint_every=10)
    with house.at_work() as (leaving,):
        house.wait(job_id, lambda job: job.progress.step >= 13)
        leaving.signal(signal.SIGTERM)
        told_at = clock.now()
        released = house.wait(job_id, lambda job: job.status is not Status.RUNNING)
        took = clock.now() - told_at
        assert leaving.wait(90) == 0
    assert released.status is Status.QUEUED
    saved = house.store.jobs.checkpoints(house.tenant_id, job_id)[0]
    with house.at_work():
        job = house.wait(job_id)
    record("R12", "released after SIGTERM", took, "s", at_most=60.0)
    record("R12", "steps lost", released.progress.step - saved.step, exactly=0)
    assert (job.status, job.attempt) == (Status.SUCCEEDED, 2)
    charged = sum(a["outcome"] not in ("released", "succeeded") for a in house.attempts(job_id))
    record("R12", "attempts charged", charged, exactly=0)
    house.check()


def test_a_cancel_at_any_moment_leaves_one_outcome(make_house: Make, record: Record) -> None:
    """Half of them at any moment of a run, half of them while its adapter is being published."""
    house = make_house(heartbeat_s=0.1, lease_s=30.0)
    race_s = [0.06]  # of a publish: longer after a cancel that came before its end

    def cancel_one(number: int) -> tuple[float, bool]:
        """How long it took to end, and whether it ended in two ways."""
        dice = random.Random(number)
        job_id = house.post(Script(steps=8, step_s=0.01))
        if number % 2:
            wait_until(lambda: house.job(job_id).progress.step >= 8)
            time.sleep(dice.uniform(0, race_s[0]))
        else:
            time.sleep(dice.uniform(0, 0.3))
        asked, refused = clock.now(), cancel_refused(house, job_id)
        job = house.wait(job_id)
        took = clock.now() - asked
        if number % 2:
            race_s[0] *= 0.8 if refused else 1.25
        made = bool(house.adapters_of([job_id]))
        return took, refused != (job.status is Status.SUCCEEDED) or made != refused

    with house.at_work(2), ThreadPoolExecutor(3) as pool:
        ends = list(pool.map(cancel_one, range(CANCELS)))
    slowest, twice = max(took for took, _ in ends), sum(both for _, both in ends)
    statuses = [job.status for job in house.store.jobs.page(house.tenant_id, limit=CANCELS).data]
    ended = statuses.count(Status.CANCELLED) + statuses.count(Status.SUCCEEDED)
    record("R13", "cancelled, or refused as it had ended", ended, exactly=CANCELS)
    assert statuses.count(Status.CANCELLED) > CANCELS / 4
    assert statuses.count(Status.SUCCEEDED) > 0, "none came in the publish race"
    record("R13", "two outcomes", twice, exactly=0)
    record("R13", "ended after a cancel", slowest, "s", at_most=15.0)
    house.check()


def cancel_refused(house: ChaosHouse, job_id: str) -> bool:
    """True where the job had succeeded before."""
    try:
        house.store.jobs.cancel(house.tenant_id, job_id)
    except Conflict:
        return True
    return False
