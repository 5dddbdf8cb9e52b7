"""Endurance: workers that run thousands of jobs hold no more at the end than at the beginning."""

import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import psutil
import pytest

from jobs.model import Status
from tests.chaos.conftest import Make
from tests.chaos.house import ChaosHouse, wait_until
from tests.chaos.nursery import Worker
from tests.chaos.trainer import Script
from tests.record import Record

TENANTS = 5
MIB = 1 << 20
REST_S, LOOKS = 2.0, 8
POOLED = 12  # of database and storage: a leak of one a job would be many times as many


@dataclass
class Watch:
    """What workers and their fork servers hold, looked at again and again."""

    workers: list[Worker]
    rss_mib: list[float] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)  # but of connections
    connections: list[int] = field(default_factory=list)

    def processes(self) -> Iterator[psutil.Process]:
        for worker in self.workers:
            owner = psutil.Process(worker.pid)
            yield from (owner, *owner.children())  # its fork server, not what that forks

    def look(self) -> None:
        self.rss_mib.append(sum(p.memory_info().rss for p in self.processes()) / MIB)

    def look_at_rest(self) -> None:
        """While no job runs, as what a running one holds comes and goes with it: the least of
        several looks, as a busy machine clears up late. Connections to the database and to storage
        stay open in pools, as many as were once needed at a time.
        """
        looks = []
        for _ in range(LOOKS):
            time.sleep(REST_S / LOOKS)
            connections = sum(len(p.net_connections("tcp")) for p in self.processes())
            looks.append((sum(p.num_fds() for p in self.processes()) - connections, connections))
        self.descriptors.append(min(descriptors for descriptors, _ in looks))
        self.connections.append(min(connections for _, connections in looks))

    def zombies(self) -> int:
        """Of all that the workers started, those that nobody has waited for."""
        return sum(
            child.status() == psutil.STATUS_ZOMBIE
            for worker in self.workers
            for child in psutil.Process(worker.pid).children(recursive=True)
        )

    def grown_mib(self) -> float:
        """From the second quarter, when all is warm, to the last."""
        quarter = len(self.rss_mib) // 4
        early = statistics.median(self.rss_mib[quarter : 2 * quarter])
        return statistics.median(self.rss_mib[-quarter:]) - early

    def grown_descriptors(self) -> int:
        return self.descriptors[-1] - self.descriptors[0]


def test_a_minute_of_jobs_leaves_workers_as_they_were(production: Make, record: Record) -> None:
    soak(production, record, seconds=8, jobs=30, what="in 8 s")


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
    house = production(lease_s=60.0, heartbeat_s=1.0, sweep_s=1.0, collect_s=seconds / 10)
    dice = random.Random(3)
    tenants = [house.tenant_id]
    tenants += [house.store.tenants.create(f"tenant-{n}").id for n in range(1, TENANTS)]
    with house.at_work(2) as workers:
        watch = Watch(workers)
        for tenant_id in tenants:  # until all is warm
            house.tenant_id = tenant_id
            house.post(Script(steps=5))
        settle(house)
        watch.look_at_rest()
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
        watch.look_at_rest()
        wait_until(lambda: not watch.zombies())
        zombies = watch.zombies()
    record("R22", f"jobs that succeeded {what}", succeeded(house, tenants), at_least=posted)
    record("R22", f"memory grown {what}", watch.grown_mib(), "MiB", at_most=5)
    record("R22", f"descriptors grown {what}", watch.grown_descriptors(), at_most=2)
    record("R22", f"connections of a worker {what}", watch.connections[-1] / 2,
           at_most=POOLED)  # fmt: skip
    record("R22", f"zombies {what}", zombies, exactly=0)
    record("R23", f"slots that one job waits behind many {what}", waited, at_most=1)
    house.check()


def lone_job(house: ChaosHouse, tenants: list[str]) -> int:
    """How many slots of the many jobs of one tenant begin before the only one of another."""
    house.tenant_id = tenants[0]
    for _ in range(20):
        house.post(Script(steps=2))
    house.tenant_id = tenants[-1]
    one = house.post(Script(steps=2))
    posted_at = house.wait(one).created_at
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
