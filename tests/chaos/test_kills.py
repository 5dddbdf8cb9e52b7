"""`kill -9` of workers, at named points and at random ones: nothing is lost, nothing is twice."""

import random
import signal
import time

import pytest

from jobs.model import Status
from jobs.queue import open_wakeups
from jobs.settings import Settings
from tests import clock
from tests.chaos.conftest import Make
from tests.chaos.house import LEASE_S, SWEEP_S, ChaosHouse, lost
from tests.chaos.nursery import Worker
from tests.chaos.trainer import Script
from tests.record import Record

START_S = 2.0  # of a worker process, with its fork server; a busy machine takes longer
EVERY = 5
POINTS = [
    "claimed",
    "inputs_fetched",
    "stepped:8",
    "checkpoint_uploaded:2",
    "tensors_uploaded",
    "manifest_put",
    "manifest_written",
    "row_finished",
    "before_ack",
]
KILLS = 25


def test_a_worker_that_is_killed_at_a_named_point_is_replaced_within_a_lease(
    make_house: Make, record: Record
) -> None:
    """One job a point, on a worker that dies there; then one that lives, at once."""
    house, ids, again, start_s = make_house(), [], 0.0, START_S
    for point in POINTS[2:4]:
        ids.append(house.post(Script(steps=12, step_s=0.01), checkpoint_every=EVERY))
        started_at = time.time()
        with house.nursery.worker(house.settings, crash_at=point) as doomed:
            assert doomed.wait(120) == -signal.SIGKILL
        killed_at = time.time()
        with house.at_work():
            house.wait(ids[-1])
        first, second = house.attempts(ids[-1])[:2]
        start_s = max(start_s, 2 * clock.ran_s(started_at, first["claimed_at"]))
        again = max(again, clock.ran_s(killed_at, second["claimed_at"]))
    promised = LEASE_S + SWEEP_S + start_s
    record("R1", f"running again, lease {LEASE_S:g} s", again, "s", at_most=promised)
    check(house, ids, record)


def test_a_worker_that_is_killed_at_any_named_point_loses_nothing(
    production: Make, record: Record
) -> None:
    """A job and a worker for each point, all at once: each dies in its first job."""
    house = production()
    ids = [house.post(Script(steps=12), checkpoint_every=EVERY) for _ in POINTS]
    # None of the doomed sweeps, so that none goes on with what another one left.
    doomed = [house.nursery.start(house.settings, crash_at=p, sweep_s=60.0) for p in POINTS]
    wakeups = open_wakeups(house.settings.broker_url)
    for _ in range(3 * len(POINTS)):  # one that dies may have taken three
        wakeups.wake(house.settings.queue)
    died = sum(worker.wait(120) == -signal.SIGKILL for worker in doomed)
    with house.at_work(2):
        house.wait_all(ids)
    record("R1", "named points where a worker was killed", died, exactly=len(POINTS))
    check(house, ids, record)


def test_workers_that_are_killed_at_random_lose_nothing(production: Make, record: Record) -> None:
    house = production(max_attempts=20)
    dice = random.Random(11)
    ids = [
        house.post(Script(steps=20, step_s=0.01), checkpoint_every=EVERY) for _ in range(KILLS // 2)
    ]
    workers, kills = [house.nursery.start(house.settings) for _ in range(3)], 0
    try:
        while kills < KILLS:
            time.sleep(dice.uniform(0, 0.25))
            busy = [worker for worker in workers if owns(house, worker)]
            if not busy:
                continue
            victim = dice.choice(busy)
            assert victim.alive, "a worker ended that nobody had killed"
            victim.kill()
            workers.remove(victim)
            kills += 1
            workers.append(house.nursery.start(house.settings))
            if house.unended() < 3:
                ids.append(house.post(Script(steps=20, step_s=0.01), checkpoint_every=EVERY))
        house.wait_all(ids)
    finally:
        for worker in workers:
            house.nursery.end(worker)
    record("R1", "workers killed at random", kills, exactly=KILLS)
    check(house, ids, record)


@pytest.mark.soak
def test_with_the_settings_that_ship_a_killed_workers_job_runs_again_in_time(
    production: Make, record: Record
) -> None:
    shipped = Settings()
    times = {name: getattr(shipped, name) for name in ("lease_s", "heartbeat_s", "sweep_s")}
    house = production(**times)
    job_id = house.post(Script(steps=100, step_s=0.05))
    with house.at_work(2) as workers:
        house.wait(job_id, lambda job: job.progress.step >= 5)
        (owner,) = [w for w in workers if f"-{w.pid}-" in house.attempts(job_id)[0]["owner"]]
        owner.kill()
        killed_at = time.time()
        house.wait(job_id, lambda job: job.attempt == 2)
        again = clock.ran_s(killed_at, house.attempts(job_id)[1]["claimed_at"])
        house.wait(job_id)
    promised = shipped.lease_s + shipped.sweep_s + START_S
    record("R1", f"running again, lease {shipped.lease_s:g} s", again, "s", at_most=promised)
    check(house, [job_id], record)


def check(house: ChaosHouse, ids: list[str], record: Record) -> None:
    jobs = [house.job(job_id) for job_id in ids]
    record("R1", "jobs lost", lost(jobs), exactly=0)
    record("R1", "adapters twice", len(house.adapters_of(ids)) - len(ids), exactly=0)
    redone = max(house.redone_steps(job_id) for job_id in ids)
    record("R1", f"steps redone, a checkpoint every {EVERY}", redone, at_most=EVERY)
    house.check()


def owns(house: ChaosHouse, worker: Worker) -> bool:
    """Whether it has an attempt in hand."""
    return any(
        attempt["ended_at"] is None and f"-{worker.pid}-" in attempt["owner"]
        for attempt in house.attempts()
    )


def test_a_job_that_kills_whoever_runs_it_ends_and_holds_up_nobody(
    make_house: Make, record: Record
) -> None:
    house = make_house()
    poison = [
        house.post(Script(at={2: "murder"})),  # the worker, as when memory runs out for all
        house.post(Script(at={2: "crash"})),  # its own process
    ]
    others = [house.post(Script(steps=5)) for _ in range(6)]
    workers = [house.nursery.start(house.settings) for _ in range(2)]
    try:
        while house.unended():
            for n, worker in enumerate(workers):
                if not worker.alive:  # as Kubernetes or `luthier serve` does
                    workers[n] = house.nursery.start(house.settings)
            time.sleep(0.02)
    finally:
        for worker in workers:
            house.nursery.end(worker)
    ended = [house.job(job_id) for job_id in poison]
    assert [job.status for job in ended] == [Status.FAILED, Status.FAILED]
    codes = [job.error.code for job in ended if job.error]
    record("R14", "a job that kills its workers", codes[0], exactly="worker_lost")
    record("R14", "a job that kills its trainers", codes[1], exactly="trainer_crashed")
    record("R14", "attempts of each", max(job.attempt for job in ended), exactly=3)
    done = [house.job(job_id) for job_id in others]
    record("R14", "other jobs lost", lost(done), exactly=0)
    house.check()
