"""Many workers at one queue: each attempt has one owner, whatever the broker and the clocks say."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import redis

from jobs.opening import open_store
from jobs.store import Store
from tests import clock
from tests.chaos.conftest import Make
from tests.chaos.house import ChaosHouse, lost, wait_until
from tests.chaos.trainer import Script, row_of
from tests.record import Record

WORKERS = 8
JOBS = 200
SWEEP_S = 1.0


def test_eight_workers_run_two_hundred_jobs_once_each_though_redis_is_flushed(
    production: Make, redis_url: str, record: Record
) -> None:
    house = production(sweep_s=SWEEP_S, lease_s=60.0, heartbeat_s=1.0)
    rows = house.add_dataset([row_of(Script(steps=1, step_s=0))])
    ids = [house.submit(rows) for _ in range(JOBS)]
    with house.at_work(WORKERS), redis.Redis.from_url(redis_url) as broker:
        wait_until(lambda: house.unended() <= JOBS // 2 + 10, timeout_s=180)
        broker.flushall()
        left = house.unended()
        jobs = house.wait_all(ids)
    assert left >= JOBS // 4, "Redis was flushed with many jobs queued"
    record("R3", "jobs run by 8 workers", len(jobs) - lost(jobs), exactly=JOBS)
    record("R3", "attempts claimed", len(house.attempts()), exactly=JOBS)
    record("R5", "jobs lost of those queued when Redis was flushed", lost(jobs), exactly=0)
    house.check()


def test_wake_ups_that_were_flushed_are_sent_again_by_the_next_sweep(
    production: Make, redis_url: str, record: Record
) -> None:
    """With nothing in hand: a worker that is told nothing has to be told again."""
    house = production(sweep_s=SWEEP_S)
    with house.at_work(2), redis.Redis.from_url(redis_url) as broker:
        first = house.wait_all([house.post(Script(steps=1)) for _ in range(2)])
        broker.flushall()
        ids = [house.post(Script(steps=1)) for _ in range(5)]
        posted_at = time.time()
        broker.flushall()
        house.wait_all(ids)
    assert lost(first) == 0
    begun = min(a["claimed_at"] for a in house.attempts() if a["job_id"] in ids)
    delay = max(0.0, clock.ran_s(posted_at, begun))
    record("R5", f"woken after a flush, sweep {SWEEP_S:g} s", delay, "s", at_most=SWEEP_S + 1.0)
    house.check()


def test_of_eight_that_ask_for_one_job_one_gets_it_and_the_others_know_at_once(
    postgres_house: Make, record: Record
) -> None:
    house = postgres_house()
    stores = [open_store(house.settings) for _ in range(WORKERS)]
    barrier = threading.Barrier(WORKERS)

    def ask(store: Store) -> tuple[bool, float]:
        barrier.wait()
        asked = time.monotonic()
        claim = store.leases.claim("test", "default")
        answered = time.monotonic()
        return claim is not None, answered - asked - sum(clock.pauses_s(asked, answered))

    won, losers = 0, []
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(ask, stores))  # connects
        for _ in range(25):
            house.post()
            answers = list(pool.map(ask, stores))
            won += sum(claimed for claimed, _ in answers)
            losers += [1000 * took for claimed, took in answers if not claimed]
    for store in stores:
        store.close()
    record("R3", "claims of 25 jobs, 8 asking for each", won, exactly=25)
    losers.sort()
    record("R3", "losers answered, median", losers[len(losers) // 2], "ms", at_most=50)


def test_workers_whose_clocks_are_minutes_off_claim_nothing_twice(
    postgres_house: Make, record: Record
) -> None:
    # Far less than clocks differ, and more than a machine stands still.
    house, began = postgres_house(lease_s=30.0), time.time()
    ids = [house.post(Script(steps=40, step_s=0.05)) for _ in range(3)]
    ids += [house.post(Script(steps=2)) for _ in range(6)]
    fast = house.nursery.start(house.settings, clock_s=300.0)
    slow = house.nursery.start(house.settings, clock_s=-300.0)
    try:
        jobs = house.wait_all(ids)
    finally:
        house.nursery.end(fast)
        house.nursery.end(slow)
    begun = [attempt["claimed_at"] for attempt in house.attempts()]
    assert all(began - 5 < at < time.time() + 5 for at in begun), "by the database's clock"
    record("R17", "double claims, clocks 5 minutes fast and slow", len(begun) - 9, exactly=0)
    record("R17", "jobs lost", lost(jobs), exactly=0)
    house.check()


def test_a_tenant_with_one_job_waits_one_slot_behind_a_tenant_with_a_hundred(
    make_house: Make, record: Record
) -> None:
    house = make_house()
    many = [house.post(Script(steps=1, step_s=0)) for _ in range(100)]
    with house.at_work():
        wait_until(lambda: len(house.attempts()) >= 5)
        ours, house.tenant_id = house.tenant_id, house.store.tenants.create("other").id
        one = house.post(Script(steps=1, step_s=0))
        posted_at = house.wait(one).created_at
        house.tenant_id = ours
    before = slots_before(house, one, posted_at)
    record("R23", "jobs of the other tenant begun before the one", before, at_most=1)
    assert house.unended() > 50, "the others were still waiting"
    house.check(settled=False)
    assert len(many) == 100


def slots_before(house: ChaosHouse, job_id: str, posted_at: float) -> int:
    attempts = house.attempts()
    begun = next(a["claimed_at"] for a in attempts if a["job_id"] == job_id)
    return sum(posted_at < a["claimed_at"] < begun for a in attempts)
