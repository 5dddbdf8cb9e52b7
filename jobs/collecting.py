"""What nothing names any more: files that a killed process left, checkpoints of jobs long over, and
what was to be kept for a time that is over.

Every file belongs to a row that is written after it and deleted before it, so a file without a row
is on its way in or was left behind. Age tells which.
"""

import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import sqlalchemy as sa
import structlog

from adapters import registry
from jobs.errors import StoreUnavailable
from jobs.store import Store
from jobs.tables import adapters, checkpoints, datasets, jobs, now, uploads
from storage.keys import (
    POINTERS,
    TENANTS,
    Owned,
    dataset_prefix,
    owned,
    pointed,
    upload_prefix,
)
from storage.objects import ObjectInfo, ObjectStore, StorageError

log = structlog.get_logger()

BATCH = 500  # ids asked for at once
DAY_S = 24 * 3600.0
EXPIRE_EVERY_S = 60.0


@dataclass(frozen=True)
class Collected:
    """How many things were removed, and of the files without a row how many bytes."""

    orphans: int
    checkpoints: int
    size_bytes: int


class Collecting:
    """Runs in a thread until `close`. Any number of workers may collect at once."""

    def __init__(
        self,
        store: Store,
        objects: ObjectStore,
        *,
        every_s: float,
        orphan_s: float,
        checkpoint_days: float,
    ) -> None:
        self._store, self._objects = store, objects
        self._every_s, self._orphan_s = every_s, orphan_s
        self._checkpoint_s = checkpoint_days * DAY_S
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True, name="collecting")

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def _loop(self) -> None:
        left_s = self._pause_s()
        while not self._closing.wait(min(left_s, EXPIRE_EVERY_S)):
            left_s -= EXPIRE_EVERY_S
            self._try(self.expire)
            if left_s <= 0:
                self._try(self.collect)
                left_s = self._pause_s()

    def _pause_s(self) -> float:
        """A fleet that started together does not list the bucket together."""
        return random.uniform(0.5, 1.0) * self._every_s

    def _try(self, work: Callable[[], object]) -> None:
        try:
            work()
        except (StoreUnavailable, StorageError) as error:
            log.warning("collecting.failed", error=str(error))
        except Exception:  # waste is no reason to end a worker
            log.exception("collecting.broken")

    def expire(self) -> int:
        """Let go of datasets and uploads whose time is over; how many there were."""
        gone = [dataset_prefix(d.tenant_id, d.id) for d in self._store.datasets.expire()]
        gone += [upload_prefix(tenant, id) for tenant, id in self._store.uploads.expire()]
        for prefix in gone:
            self._objects.delete_prefix(prefix)
        if gone:
            log.info("expired", things=len(gone))
        return len(gone)

    def collect(self) -> Collected:
        """Let go of old checkpoints, then remove old files that no row names."""
        dropped = self._drop_checkpoints()
        before = time.time() - self._orphan_s
        removed, size_bytes = 0, 0
        for batch in _batches(self._old(before)):
            known = self._known([thing for thing, _ in batch])
            for thing, size in batch:
                if thing not in known and not self._closing.is_set():
                    self._remove(thing)
                    removed, size_bytes = removed + 1, size_bytes + size
        found = Collected(removed, dropped, size_bytes)
        if found != Collected(0, 0, 0):
            log.info("collected", orphans=removed, checkpoints=dropped, size_bytes=size_bytes)
        return found

    def _drop_checkpoints(self) -> int:
        """Forget the checkpoints of jobs that ended long ago; their files are then nobody's."""
        over = sa.select(jobs.c.id).where(jobs.c.finished_at < now() - self._checkpoint_s)
        with self._store.database.write() as connection:
            gone = connection.execute(checkpoints.delete().where(checkpoints.c.job_id.in_(over)))
        return gone.rowcount

    def _old(self, before: float) -> Iterator[tuple[Owned, int]]:
        """Everything whose newest file is older than `before`, with its size."""
        for prefix, parse in ((TENANTS, owned), (POINTERS, pointed)):
            yield from _groups(self._objects.list(prefix), parse, before)

    def _known(self, things: Sequence[Owned]) -> set[Owned]:
        """Those that have a row; what the code does not know is not its to remove."""
        with self._store.database.read() as connection:
            return {
                thing
                for kind, (table, column) in _TABLES.items()
                for thing in _with_row(
                    connection, table, column, [thing for thing in things if thing.kind == kind]
                )
            }

    def _remove(self, thing: Owned) -> None:
        if thing.kind == "adapter":
            registry.remove(self._objects, thing.tenant_id, thing.id)
        elif thing.kind == "pointer":
            self._objects.delete(thing.prefix)
        else:
            self._objects.delete_prefix(thing.prefix)


_TABLES: dict[str, tuple[sa.Table, str]] = {
    "adapter": (adapters, "id"),
    "pointer": (adapters, "id"),
    "dataset": (datasets, "id"),
    "upload": (uploads, "id"),
    "checkpoint": (checkpoints, "job_id"),
}


def _with_row(
    connection: sa.Connection, table: sa.Table, column: str, things: list[Owned]
) -> Iterator[Owned]:
    if not things:
        return
    query = sa.select(table).where(table.c[column].in_({thing.id for thing in things}))
    rows = connection.execute(query).mappings().all()
    if table is checkpoints:
        exact = {(row["job_id"], row["attempt"], row["step"]) for row in rows}
        yield from (t for t in things if (t.id, t.attempt, t.step) in exact)
    else:
        ids = {row[column] for row in rows}
        yield from (thing for thing in things if thing.id in ids)


def _groups(
    found: Iterable[ObjectInfo], parse: Callable[[str], Owned | None], before: float
) -> Iterator[tuple[Owned, int]]:
    """Keys come sorted, so what belongs together comes together."""
    for thing, files in groupby(found, key=lambda info: parse(info.key)):
        sizes, newest = 0, 0.0
        for info in files:
            sizes, newest = sizes + info.size_bytes, max(newest, info.modified_at)
        if thing is not None and newest < before:
            yield thing, sizes


def _batches(things: Iterator[tuple[Owned, int]]) -> Iterator[list[tuple[Owned, int]]]:
    batch: list[tuple[Owned, int]] = []
    for thing in things:
        batch.append(thing)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
