"""What the jobs table has to say to Prometheus, asked when it is scraped.

The table is the truth about jobs, so every process that shows it shows the same numbers: take their
maximum over processes, not their sum.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import sqlalchemy as sa
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from jobs.database import Database
from jobs.errors import StoreUnavailable
from jobs.model import TERMINAL, Status
from jobs.tables import events, jobs, now, tenants

FRESH_S = 2.0  # several who scrape share one look
ENDED_FRESH_S = 5.0
ENDED_SHARE = 0.01  # of the time, at most, goes into counting jobs that have ended: they pile up
CLASS = "standard"  # of tenants that have no other

Kind = tuple[str, str, str, str]  # status, method, tenant class, queue


@dataclass(frozen=True)
class Look:
    """`queues` has how many wait in each, and how long the one that waits longest has waited."""

    jobs: Mapping[Kind, int]
    queues: Mapping[str, tuple[int, float]]
    leases_overdue: int


@dataclass(eq=False)
class Census(Collector):
    """Also shows a queue that is empty, where it is the `queue` of this process."""

    database: Database
    queue: str
    tenant_classes: Mapping[str, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _look: Look | None = None
    _looked_at: float = float("-inf")
    _ended: Mapping[Kind, int] = field(default_factory=dict, repr=False)
    _ended_due_at: float = float("-inf")

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return self._families(None)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Where the database is away, luthier_database_up is 0 and all else is left out."""
        with self._lock:
            try:
                look = self._fresh()
            except StoreUnavailable:
                return [_up(0.0)]
        return self._families(look)

    def _fresh(self) -> Look:
        if self._look is None or time.monotonic() - self._looked_at > FRESH_S:
            with self.database.read() as connection:
                self._look = self._taken(connection)
            self._looked_at = time.monotonic()
        return self._look

    def _taken(self, connection: sa.Connection) -> Look:
        live = self._counted(connection, jobs.c.status.not_in(TERMINAL))
        if time.monotonic() >= self._ended_due_at:
            began = time.monotonic()
            self._ended = self._counted(connection, jobs.c.status.in_(TERMINAL))
            took = time.monotonic() - began
            self._ended_due_at = time.monotonic() + max(ENDED_FRESH_S, took / ENDED_SHARE)
        overdue = sa.select(sa.func.count()).where(
            jobs.c.status == Status.RUNNING, jobs.c.lease_expires_at < now()
        )
        return Look(
            jobs={**live, **self._ended},
            queues={self.queue: (0, 0.0)} | _waiting(connection),
            leases_overdue=connection.scalar(overdue) or 0,
        )

    def _counted(
        self, connection: sa.Connection, which: sa.ColumnElement[bool]
    ) -> Mapping[Kind, int]:
        each = (
            sa.select(
                jobs.c.status,
                jobs.c.spec["method"]["type"].as_string().label("method"),
                tenants.c.name.label("tenant"),
                jobs.c.queue,
            )
            .join_from(jobs, tenants, jobs.c.tenant_id == tenants.c.id)
            .where(which)
            .subquery()
        )
        kind = (each.c.status, each.c.method, each.c.tenant, each.c.queue)
        query = sa.select(*kind, sa.func.count()).group_by(*kind)
        found: Counter[Kind] = Counter()
        for status, method, tenant, queue, count in connection.execute(query):
            found[status, method, self.tenant_classes.get(tenant, CLASS), queue] += count
        return found

    def _families(self, look: Look | None) -> list[GaugeMetricFamily]:
        counts = GaugeMetricFamily(
            "luthier_jobs",
            "Jobs in the table. Where many have ended, those are counted anew only now and then.",
            labels=["status", "method", "tenant_class", "queue"],
        )
        depth = GaugeMetricFamily(
            "luthier_queue_jobs", "Jobs that wait for a worker.", labels=["queue"]
        )
        oldest = GaugeMetricFamily(
            "luthier_queue_oldest_seconds",
            "How long the job has been waiting that waits longest; 0: none waits.",
            labels=["queue"],
        )
        overdue = GaugeMetricFamily(
            "luthier_leases_overdue", "Running jobs whose lease has run out and nobody has taken."
        )
        if look is not None:
            for kind, count in look.jobs.items():
                counts.add_metric(kind, count)
            for queue, (count, seconds) in look.queues.items():
                depth.add_metric([queue], count)
                oldest.add_metric([queue], seconds)
            overdue.add_metric([], look.leases_overdue)
        return [_up(1.0), counts, depth, oldest, overdue]


def _waiting(connection: sa.Connection) -> dict[str, tuple[int, float]]:
    """A queued job's last event is the one that queued it, so that is since when it waits."""
    last = sa.and_(events.c.job_id == jobs.c.id, events.c.seq == jobs.c.event_seq)
    query = (
        sa.select(jobs.c.queue, sa.func.count(), now() - sa.func.min(events.c.created_at))
        .join_from(jobs, events, last)
        .where(jobs.c.status == Status.QUEUED)
        .group_by(jobs.c.queue)
    )
    rows = connection.execute(query)
    return {queue: (count, max(0.0, seconds)) for queue, count, seconds in rows}


def _up(value: float) -> GaugeMetricFamily:
    about = "1 while the database answers; without it there are no numbers of the jobs table."
    return GaugeMetricFamily("luthier_database_up", about, value=value)
