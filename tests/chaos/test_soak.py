"""Endurance: workers that run thousands of jobs hold no more at the end than at the beginning."""

import random
import statistics
import time
from dataclasses import dataclass, field

import psutil
import pytest

from jobs.model import Status
from tests.chaos.conftest import Make
from tests.chaos.house import ChaosHouse
from tests.chaos.nursery import Worker
from tests.chaos.trainer import Script
from tests.record import Record

TENANTS = 5
MIB = 1 << 20


@dataclass
class Watch:
    """What workers and their fork servers hold, looked at again and again."""

    workers: list[Worker]
    rss_mib: list[float] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    def look(self) -> None:
        rss, fds = 0, 0
        for worker in self.workers:
            owner = psutil.Process(worker.pid)
            for process in (owner, *owner.children()):  # its fork server, not what that forks
                rss, fds = rss + process.memory_info().rss, fds + process.num_fds()
        self.rss_mib.append(rss / MIB)
        self.descriptors.append(fds)

    def zombies(self) -> int:
        """Of all that the workers started, those that nobody has waited for."""
        return sum(
            child.status() == psutil.STATUS_ZOMBIE
            for worker in self.workers
            for child in psutil.Process(worker.pid).children(recursive=True)
        )

    def grown(self, values: list[float] | list[int]) -> float:
        """From the second quarter, when all is warm, to the last."""
        quarter = len(values) // 4
        early = statistics.median(values[quarter : 2 * quarter])
        return statistics.median(values[-quarter:]) - early


def test_a_minute_of_jobs_leaves_workers_as_they_were(production: Make, record: Record) -> None:
    soak(production, record, seconds=12, jobs=40, what="in 12 s")


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_half_an_hour_of_jobs_leaves_workers_as_they_were(
    production: Make, record: Record, pytestconfig: pytest.Config
) -> None:
    seconds = pytestconfig.getoption("--soak-s")
    jobs = max(60, int(2000 * seconds / 1800))
    soak(production, record, seconds=seconds, jobs=jobs, what=f"in {seconds:g} s")


def soak(production: Make, record: Record, *, seconds: float, jobs: int, what: str) -> None:
    """Jobs of five tenants, posted evenly, to two workers; a single one among many hundreds."""
    house = production(lease_s=10.0, heartbeat_s=1.0, sweep_s=1.0, collect_s=seconds / 10)
    dice = random.Random(3)
    tenants = [house.tenant_id]
    tenants += [house.store.tenants.create(f"tenant-{n}").id for n in range(1, TENANTS)]
    with house.at_work(2) as workers:
        watch = Watch(workers)
        began, posted = time.monotonic(), 0
        while (gone := time.monotonic() - began) < seconds:
            while posted < jobs * min(1.0, gone / seconds):
                house.tenant_id = dice.choice(tenants)
                house.post(Script(steps=5, step_s=dice.uniform(0, 0.02)))
                posted += 1
            watch.look()
            time.sleep(min(1.0, seconds / 40))
        settle(house)
        waited = lone_job(house, tenants)
        time.sleep(1.0)
        zombies = watch.zombies()
    record("R22", f"jobs that succeeded {what}", succeeded(house, tenants), at_least=posted)
    record("R22", f"memory grown {what}", watch.grown(watch.rss_mib), "MiB", at_most=5)
    record("R22", f"descriptors grown {what}", watch.grown(watch.descriptors), at_most=2)
    record("R22", f"zombies {what}", zombies, exactly=0)
    record("R23", f"slots that one job waits behind many {what}", waited, at_most=1)
    house.check()


def lone_job(house: ChaosHouse, tenants: list[str]) -> int:
    """How many slots of the many jobs of one tenant begin before the only one of another."""
    house.tenant_id = tenants[0]
    for _ in range(40):
        house.post(Script(steps=2))
    house.tenant_id, posted_at = tenants[-1], time.time()
    one = house.post(Script(steps=2))
    house.wait(one)
    settle(house)
    attempts = house.attempts()
    begun = next(a["claimed_at"] for a in attempts if a["job_id"] == one)
    before = sum(posted_at < a["claimed_at"] < begun for a in attempts)
    return -(-before // 2)  # two workers: two at once are one slot


def settle(house: ChaosHouse) -> None:
    deadline = time.monotonic() + 300
    while house.unended():
        assert time.monotonic() < deadline, f"{house.unended()} jobs do not end"
        time.sleep(0.05)


def succeeded(house: ChaosHouse, tenants: list[str]) -> int:
    total = 0
    for tenant_id in tenants:
        after, more = None, True
        while more:
            page = house.store.jobs.page(tenant_id, status=Status.SUCCEEDED, after=after, limit=100)
            total, more = total + len(page.data), page.has_more
            after = page.data[-1].id if page.data else None
    return total
