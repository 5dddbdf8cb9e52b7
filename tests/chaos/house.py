"""A house whose workers run the scripted trainer, and what the chaos tests ask of it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from jobs.model import TERMINAL, Job, Status
from jobs.tables import attempts, events, jobs
from tests import clock
from tests.chaos.invariants import assert_invariants
from tests.chaos.nursery import Nursery, Worker
from tests.chaos.trainer import Script, row_of
from tests.workers import House

LEASE_S = 1.0
SWEEP_S = 0.25
FAST = {"lease_s": LEASE_S, "heartbeat_s": 0.2, "sweep_s": SWEEP_S, "max_attempts": 3}


class ChaosHouse(House):
    def __init__(self, data_dir: Path, base: Path, nursery: Nursery, **settings: Any) -> None:
        super().__init__(data_dir, base, **(FAST | settings))
        self.nursery = nursery

    @contextmanager
    def at_work(self, count: int = 1, **changes: Any) -> Iterator[list[Worker]]:
        """Workers, ended with the block whatever became of them."""
        workers = [self.nursery.start(self.settings, **changes) for _ in range(count)]
        try:
            yield workers
        finally:
            for worker in workers:
                self.nursery.end(worker)

    def post(self, script: Script | None = None, *, checkpoint_every: int = 5) -> str:
        """A job that does what the script says."""
        dataset_id = self.add_dataset([row_of(script or Script())])
        return self.submit(dataset_id, checkpoint_every=checkpoint_every)

    def wait_all(self, job_ids: list[str], timeout_s: float = 180) -> list[Job]:
        """The jobs, once all have ended."""
        wait_until(lambda: not self.unended(), timeout_s)
        return [self.job(job_id) for job_id in job_ids]

    def unended(self) -> int:
        query = sa.select(sa.func.count()).where(jobs.c.status.not_in(list(TERMINAL)))
        with self.store.database.read() as connection:
            return connection.scalar(query) or 0

    def attempts(self, job_id: str | None = None) -> list[sa.RowMapping]:
        query = sa.select(attempts).order_by(attempts.c.claimed_at)
        if job_id is not None:
            query = query.where(attempts.c.job_id == job_id)
        with self.store.database.read() as connection:
            return list(connection.execute(query).mappings())

    def redone_steps(self, job_id: str) -> int:
        """The most steps that one of a job's attempts made again."""
        query = sa.select(events).where(events.c.job_id == job_id).order_by(events.c.seq)
        with self.store.database.read() as connection:
            found = list(connection.execute(query).mappings())
        last, most = 0, 0
        for event in found:
            if "resumed_step" in event["data"]:
                most = max(most, last - event["data"]["resumed_step"])
            last = event["data"].get("step", last) if event["type"] == "metrics" else last
        return most

    def adapters_of(self, job_ids: list[str]) -> list[str]:
        """The adapters that these jobs made, one a row."""
        page = self.store.adapters.page(self.tenant_id, limit=100)
        assert not page.has_more
        return [adapter.id for adapter in page.data if adapter.job_id in job_ids]

    def check(self, *, settled: bool = True) -> None:
        assert_invariants(self.store, self.objects, settled=settled)


def lost(found: list[Job]) -> int:
    return sum(job.status is not Status.SUCCEEDED for job in found)


def wait_until(true: Callable[[], Any], timeout_s: float = 120.0) -> float:
    """How long it took, in seconds that the machine ran."""
    began = clock.now()
    while not true():
        assert clock.now() - began < timeout_s, f"it did not happen in {timeout_s} s"
        time.sleep(0.01)
    return clock.now() - began
