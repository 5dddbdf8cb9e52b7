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
from jobs.quotas import DEFAULTS, Quotas, hold, require_bytes
from jobs.tables import datasets, jobs, now, pipeline_stages


class Datasets:
    def __init__(self, database: Database, defaults: Quotas = DEFAULTS) -> None:
        self._db, self._defaults = database, defaults

    def add(self, dataset: Dataset) -> Dataset:
        """Make a stored dataset visible. `created_at` is set by the database.

        Raises QuotaExceeded.
        """
        values = dataset.model_dump(mode="json") | {"created_at": now()}
        query = datasets.insert().values(values).returning(datasets)
        with self._db.write() as connection:
            require_bytes(connection, dataset.tenant_id, dataset.size_bytes, self._defaults)
            note(connection, dataset.tenant_id, "dataset.create", dataset.id)
            return _dataset(connection.execute(query).mappings().one())

    def require_bytes(self, tenant_id: str, wanted: int) -> None:
        """Look, before an upload is read, whether it could be kept. Raises QuotaExceeded."""
        with self._db.read() as connection:
            require_bytes(connection, tenant_id, wanted, self._defaults, held=False)

    def get(self, tenant_id: str, dataset_id: str) -> Dataset:
        """Raises NotFound, for a foreign id as for an unknown one."""
        with self._db.read() as connection:
            return find_dataset(connection, tenant_id, dataset_id)

    def page(self, tenant_id: str, *, after: str | None = None, limit: int = 20) -> Page:
        where = datasets.c.tenant_id == tenant_id
        with self._db.read() as connection:
            return newest_first(
                connection, datasets, where, after=after, limit=limit, record=_dataset
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
            if connection.scalar(sa.select(datasets.c.id).where(mine).with_for_update()) is None:
                raise NotFound("dataset", dataset_id)
            for what, id, spec in _needing_rows(connection, tenant_id):
                if dataset_id in named_in(spec):
                    raise InUse(f"{what} {id} still needs dataset {dataset_id}; cancel it first.")
            found = derived_from(connection, tenant_id, dataset_id)
            if derived:
                for adapter_id in found.adapters:
                    require_unused(connection, tenant_id, adapter_id)
                delete_derived(connection, tenant_id, found)
            connection.execute(datasets.delete().where(mine))
            note(connection, tenant_id, "dataset.delete", dataset_id)
            return found


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
    query = sa.select(datasets).where(
        datasets.c.tenant_id == tenant_id, datasets.c.id == dataset_id
    )
    row = connection.execute(query.with_for_update(read=True) if lock else query).mappings().first()
    if row is None:
        raise NotFound("dataset", dataset_id)
    return _dataset(row)


def _dataset(row: sa.RowMapping) -> Dataset:
    return Dataset.model_validate(dict(row))
