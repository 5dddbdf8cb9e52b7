"""Adapter rows: the row decides whether an adapter exists."""

from typing import Any

import sqlalchemy as sa

from jobs.audit import note
from jobs.database import Database
from jobs.errors import InUse, NotFound
from jobs.model import TERMINAL, Adapter
from jobs.pages import Page, newest_first
from jobs.quotas import DEFAULTS, Quotas, require_bytes
from jobs.tables import adapters, job_inputs, jobs, now, pipeline_stages, stage_inputs


class Adapters:
    def __init__(self, database: Database, defaults: Quotas = DEFAULTS) -> None:
        self._db, self._defaults = database, defaults

    def add(self, adapter: Adapter) -> Adapter:
        """Make a published adapter visible. `created_at` is set by the database.

        Raises QuotaExceeded.
        """
        with self._db.write() as connection:
            require_bytes(connection, adapter.tenant_id, adapter.size_bytes, self._defaults)
            return insert_adapter(connection, adapter)

    def add_once(self, adapter: Adapter) -> Adapter:
        """Make it visible, or find it where somebody has just done so."""
        try:
            return self.add(adapter)
        except sa.exc.IntegrityError:
            return self.get(adapter.tenant_id, adapter.id)

    def get(self, tenant_id: str, adapter_id: str) -> Adapter:
        """Raises NotFound, for a foreign id as for an unknown one."""
        with self._db.read() as connection:
            return find_adapter(connection, tenant_id, adapter_id)

    def page(self, tenant_id: str, *, after: str | None = None, limit: int = 20) -> Page:
        where = adapters.c.tenant_id == tenant_id
        with self._db.read() as connection:
            return newest_first(
                connection, adapters, where, after=after, limit=limit, record=_adapter
            )

    def delete(self, tenant_id: str, adapter_id: str) -> None:
        """Raises NotFound, or InUse while a job that has not ended starts from it.

        The row goes first: what has no row does not exist.
        """
        mine = _mine(tenant_id, adapter_id)
        with self._db.write() as connection:
            if connection.scalar(sa.select(adapters.c.id).where(mine).with_for_update()) is None:
                raise NotFound("adapter", adapter_id)
            require_unused(connection, tenant_id, adapter_id)
            connection.execute(adapters.delete().where(mine))
            note(connection, tenant_id, "adapter.delete", adapter_id)


def find_adapter(
    connection: sa.Connection, tenant_id: str, adapter_id: str, *, lock: bool = False
) -> Adapter:
    """The tenant's adapter; with `lock` it cannot be deleted before this transaction ends."""
    query = sa.select(adapters).where(_mine(tenant_id, adapter_id))
    row = connection.execute(query.with_for_update(read=True) if lock else query).mappings().first()
    if row is None:
        raise NotFound("adapter", adapter_id)
    return _adapter(row)


def insert_adapter(connection: sa.Connection, adapter: Adapter) -> Adapter:
    values: dict[str, Any] = adapter.model_dump(mode="json") | {"created_at": now()}
    query = adapters.insert().values(values).returning(adapters)
    note(connection, adapter.tenant_id, "adapter.create", adapter.id)
    return _adapter(connection.execute(query).mappings().one())


def require_unused(connection: sa.Connection, tenant_id: str, adapter_id: str) -> None:
    """Raises InUse, which names the job or the stage that starts from the adapter."""
    live = (
        sa.select(jobs.c.id)
        .join(job_inputs, job_inputs.c.job_id == jobs.c.id)
        .where(job_inputs.c.adapter_id == adapter_id, jobs.c.status.not_in(TERMINAL))
    )
    if (job_id := connection.scalar(live.limit(1))) is not None:
        raise InUse(f"Job {job_id} still needs adapter {adapter_id}; cancel it first.")
    made_by = (
        sa.select(sa.literal("@") + jobs.c.stage)
        .where(jobs.c.pipeline_id == stage_inputs.c.pipeline_id, jobs.c.adapter_id == adapter_id)
        .scalar_subquery()
    )
    waiting = (
        sa.select(pipeline_stages.c.pipeline_id, pipeline_stages.c.name)
        .join(
            stage_inputs,
            sa.and_(
                stage_inputs.c.pipeline_id == pipeline_stages.c.pipeline_id,
                stage_inputs.c.stage == pipeline_stages.c.name,
            ),
        )
        .where(
            pipeline_stages.c.tenant_id == tenant_id,
            pipeline_stages.c.state == "waiting",
            sa.or_(stage_inputs.c.source == adapter_id, stage_inputs.c.source == made_by),
        )
    )
    if (stage := connection.execute(waiting.limit(1)).first()) is not None:
        raise InUse(
            f"Stage {stage.name!r} of pipeline {stage.pipeline_id} still needs adapter "
            f"{adapter_id}; cancel it first."
        )


def _mine(tenant_id: str, adapter_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(adapters.c.tenant_id == tenant_id, adapters.c.id == adapter_id)


def _adapter(row: sa.RowMapping) -> Adapter:
    return Adapter.model_validate(dict(row))
