"""Dataset rows: what was uploaded, validated and stored."""

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from jobs.adapters import require_unused
from jobs.audit import note
from jobs.database import Database
from jobs.errors import InUse, NotFound
from jobs.lineage import Derived, delete_derived, derived_from
from jobs.mixture import named_in
from jobs.model import TERMINAL, Dataset
from jobs.pages import Page, newest_first
from jobs.quotas import DEFAULTS, Quotas, hold, require_bytes, unexpired
from jobs.tables import datasets, jobs, now, pipeline_stages

EXPIRED_AT_ONCE = 500


class Datasets:
    def __init__(self, database: Database, defaults: Quotas = DEFAULTS) -> None:
        self._db, self._defaults = database, defaults

    def add(self, dataset: Dataset) -> Dataset:
        """Make a stored dataset visible. `created_at` is set by the database.

        Raises QuotaExceeded.
        """
        with self._db.write() as connection:
            return add_dataset(connection, dataset, self._defaults)

    def require_bytes(self, tenant_id: str, wanted: int) -> None:
        """Look, before an upload is read, whether it could be kept. Raises QuotaExceeded."""
        with self._db.read() as connection:
            require_bytes(connection, tenant_id, wanted, self._defaults, held=False)

    def get(self, tenant_id: str, dataset_id: str) -> Dataset:
        """Raises NotFound, for a foreign id as for an unknown one."""
        with self._db.read() as connection:
            return find_dataset(connection, tenant_id, dataset_id)

    def page(
        self, tenant_id: str, *, after: str | None = None, limit: int = 20, oldest: bool = False
    ) -> Page:
        """Newest first, or `oldest` first. Raises NotFound for an unknown cursor."""
        with self._db.read() as connection:
            return newest_first(
                connection,
                datasets,
                _visible(connection, tenant_id),
                after=after,
                limit=limit,
                record=_dataset,
                oldest=oldest,
            )

    def derived(self, tenant_id: str, dataset_id: str) -> Derived:
        """What was made from a dataset. Raises NotFound."""
        with self._db.read() as connection:
            find_dataset(connection, tenant_id, dataset_id)
            return derived_from(connection, tenant_id, dataset_id)

    def delete(self, tenant_id: str, dataset_id: str, *, derived: bool = False) -> Derived:
        """Delete a dataset, and with `derived` all that was made from it; what that is.

        Raises NotFound, or InUse while a job or a stage that has not ended needs any of it.
        """
        mine = sa.and_(datasets.c.tenant_id == tenant_id, datasets.c.id == dataset_id)
        with self._db.write() as connection:
            if derived:
                hold(connection, tenant_id)  # nobody posts a job that starts from any of it
            lock = sa.select(datasets.c.id).where(mine).with_for_update()
            connection.execute(lock)
            find_dataset(connection, tenant_id, dataset_id)
            if needed := _needed(connection, tenant_id).get(dataset_id):
                raise InUse(f"{needed} still needs dataset {dataset_id}; cancel it first.")
            found = derived_from(connection, tenant_id, dataset_id)
            if derived:
                for adapter_id in found.adapters:
                    require_unused(connection, tenant_id, adapter_id)
                delete_derived(connection, tenant_id, found)
            connection.execute(datasets.delete().where(mine))
            note(connection, tenant_id, "dataset.delete", dataset_id)
            return found

    def expire(self) -> list[Dataset]:
        """Forget the datasets whose time is over and that no job needs; whose bytes can then go."""
        with self._db.read() as connection:
            query = sa.select(datasets.c.id).where(_late()).limit(EXPIRED_AT_ONCE)
            late = list(connection.scalars(query))
        return [gone for dataset_id in late if (gone := self._expire(dataset_id)) is not None]

    def _expire(self, dataset_id: str) -> Dataset | None:
        query = sa.select(datasets).where(datasets.c.id == dataset_id).with_for_update()
        with self._db.write() as connection:
            row = connection.execute(query).mappings().first()
            if row is None or dataset_id in _needed(connection, row["tenant_id"]):
                return None
            connection.execute(datasets.delete().where(datasets.c.id == dataset_id))
            note(connection, row["tenant_id"], "dataset.expire", dataset_id)
            return _dataset(row)


def add_dataset(connection: sa.Connection, dataset: Dataset, defaults: Quotas) -> Dataset:
    """A dataset's row, in the caller's transaction. Raises QuotaExceeded."""
    values = dataset.model_dump(mode="json") | {"created_at": now()}
    query = datasets.insert().values(values).returning(datasets)
    require_bytes(connection, dataset.tenant_id, dataset.size_bytes, defaults)
    note(connection, dataset.tenant_id, "dataset.create", dataset.id)
    return _dataset(connection.execute(query).mappings().one())


def _visible(connection: sa.Connection, tenant_id: str) -> sa.ColumnElement[bool]:
    """The tenant's datasets, but for those past their time that no job needs."""
    mine = datasets.c.tenant_id == tenant_id
    late = sa.select(datasets.c.id).where(mine, _late()).limit(1)
    if connection.scalar(late) is None:
        return mine
    kept = datasets.c.id.in_(_needed(connection, tenant_id))
    return sa.and_(mine, sa.or_(unexpired(), kept))


def _late() -> sa.ColumnElement[bool]:
    return sa.and_(datasets.c.expires_after_s.is_not(None), sa.not_(unexpired()))


def _needed(connection: sa.Connection, tenant_id: str) -> dict[str, str]:
    """The datasets that jobs or stages need which have not ended, and who needs each."""
    return {
        dataset_id: f"{what} {id}"
        for what, id, spec in _needing_rows(connection, tenant_id)
        for dataset_id in named_in(spec)
    }


def _needing_rows(
    connection: sa.Connection, tenant_id: str
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Specs of the tenant's jobs and stages that have not ended: no more than its quota allows."""
    live = sa.select(jobs.c.id, jobs.c.spec).where(
        jobs.c.tenant_id == tenant_id, jobs.c.status.not_in(TERMINAL)
    )
    for id, spec in connection.execute(live):
        yield "Job", id, spec
    waiting = sa.select(pipeline_stages.c.pipeline_id, pipeline_stages.c.spec).where(
        pipeline_stages.c.tenant_id == tenant_id, pipeline_stages.c.state == "waiting"
    )
    for id, spec in connection.execute(waiting):
        yield "Pipeline", id, spec


def find_dataset(
    connection: sa.Connection, tenant_id: str, dataset_id: str, *, lock: bool = False
) -> Dataset:
    """The tenant's dataset; with `lock` it cannot be deleted before this transaction ends."""
    query = sa.select(datasets, _late().label("late")).where(
        datasets.c.tenant_id == tenant_id, datasets.c.id == dataset_id
    )
    row = connection.execute(query.with_for_update(read=True) if lock else query).mappings().first()
    if row is None or (row["late"] and dataset_id not in _needed(connection, tenant_id)):
        raise NotFound("dataset", dataset_id)
    return _dataset(row)


def _dataset(row: sa.RowMapping) -> Dataset:
    return Dataset.model_validate({name: row[name] for name in Dataset.model_fields})
