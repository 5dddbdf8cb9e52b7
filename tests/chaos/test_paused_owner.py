"""A worker that is stopped past its lease, and wakes up when another one has done its work."""

import os
import signal

import psutil

from jobs.model import Status
from jobs.settings import Settings
from tests import clock
from tests.chaos.conftest import Make
from tests.chaos.house import ChaosHouse, wait_until
from tests.chaos.nursery import Worker
from tests.chaos.trainer import Script
from tests.record import Record

AT_STEP = [1, 7, 15]


def test_an_owner_that_wakes_after_its_lease_writes_nothing_and_ends_itself(
    postgres_house: Make, record: Record
) -> None:
    """Over PostgreSQL: who is stopped in a transaction on SQLite stops all who share the file."""
    house = postgres_house()
    late, slowest = 0, 0.0
    for step in AT_STEP:
        job_id = house.post(Script(steps=40, step_s=0.05))
        with house.at_work() as (stale,):
            house.wait(job_id, lambda job, at=step: job.progress.step >= at)
            os.killpg(stale.pid, signal.SIGSTOP)
            try:
                with house.at_work():
                    assert house.wait(job_id).status is Status.SUCCEEDED
            finally:
                os.killpg(stale.pid, signal.SIGCONT)
            slowest = max(slowest, wait_until(lambda worker=stale: not trains(worker)))
            late += late_writes(house, job_id)
        assert house.job(job_id).attempt > 1
    record("R2", "owners stopped past their lease", len(AT_STEP), exactly=len(AT_STEP))
    record("R2", "late writes accepted", late, exactly=0)
    record("R2", "a stale attempt ends after waking", slowest, "s", at_most=10.0)
    house.check()


def test_an_owner_that_is_stopped_in_the_middle_of_publishing_shows_nothing(
    postgres_house: Make, record: Record
) -> None:
    """Its files and manifest are stored, its row is not; the successor's result is the only one."""
    house = postgres_house()
    job_id = house.post()
    with house.at_work(crash_at="stop manifest_written") as (stale,):
        wait_until(lambda: psutil.Process(stale.pid).status() == psutil.STATUS_STOPPED)
        with house.at_work():
            job = house.wait(job_id)
        stale.signal(signal.SIGCONT)
        following = house.wait(house.post())  # by the stale one: it has let go of the first
    assert following.status is Status.SUCCEEDED
    assert (job.status, job.attempt > 1) == (Status.SUCCEEDED, True)
    record("R2", "late writes accepted", late_writes(house, job_id), exactly=0)
    left = {info.key.split("/")[3] for info in house.objects.list(f"tenants/{house.tenant_id}/a")}
    record("R2", "adapters in the store of 2 jobs", len(left), exactly=2)
    house.check()


def test_who_is_stopped_in_a_transaction_loses_its_locks_within_a_lease(
    postgres_house: Make,
) -> None:
    house = postgres_house()
    with house.store.database.read() as connection:
        shown = connection.exec_driver_sql("show idle_in_transaction_session_timeout").scalar()
    assert shown == "10s"
    assert Settings().lease_s > 10


def late_writes(house: ChaosHouse, job_id: str) -> int:
    """Events of an attempt with a number above a later one's first."""
    events, _ = house.store.jobs.events(house.tenant_id, job_id, limit=1000)
    order = [event.attempt for event in sorted(events, key=lambda event: event.seq)]
    return sum(attempt < max(order[:n]) for n, attempt in enumerate(order) if n)


def trains(worker: Worker) -> bool:
    """Whether a trainer is left of it: a child of its fork server."""
    return any(
        child.name() and grandchild.is_running() and grandchild.status() != psutil.STATUS_ZOMBIE
        for child in psutil.Process(worker.pid).children()
        for grandchild in child.children()
    )


def test_a_trainer_that_hangs_does_not_keep_its_job_for_ever(
    make_house: Make, record: Record
) -> None:
    """Its worker lives and renews the lease, so no sweep would ever take the job back."""
    house = make_house(stall_s=2.0, lease_s=30.0)
    job_id = house.post(Script(steps=10, at={7: "hang"}, once=house.settings.data_dir / "hung"))
    with house.at_work():
        job = house.wait(job_id)
    *hung, last = house.attempts(job_id)
    assert (job.status, last["outcome"]) == (Status.SUCCEEDED, "succeeded")
    assert {attempt["outcome"] for attempt in hung} == {"trainer_stalled"}
    held = max(clock.ran_s(attempt["claimed_at"], attempt["ended_at"]) for attempt in hung)
    record("R14", "a job whose trainer hangs, limit 2 s, runs again after", held, "s", at_most=4.0)
    house.check()
