"""What a tenant may have at once and use in a time: the operator's defaults, and a tenant's own.

Whatever is counted against a limit is counted under a lock on the tenant's row, so a limit holds
exactly, however many ask at the same moment.
"""

from collections.abc import Mapping

import sqlalchemy as sa
from pydantic import Field

from jobs.audit import note
from jobs.database import Database
from jobs.errors import NotFound, QuotaExceeded
from jobs.model import TERMINAL, Record, Status
from jobs.tables import (
    adapters,
    datasets,
    jobs,
    now,
    pipeline_stages,
    tenant_quotas,
    tenants,
    uploads,
)


class Quotas(Record):
    """Limits of one tenant; 0 is none."""

    max_running_jobs: int = Field(0, ge=0)
    max_queued_jobs: int = Field(1000, ge=0)  # and running ones
    max_stored_bytes: int = Field(0, ge=0)
    max_tokens_per_day: int = Field(0, ge=0)
    reads_per_minute: int = Field(600, ge=0)
    writes_per_minute: int = Field(60, ge=0)
    generations_per_minute: int = Field(600, ge=0)


DEFAULTS = Quotas()
NAMES = tuple(Quotas.model_fields)


class TenantQuotas:
    """Whose limits differ from the defaults, and how."""

    def __init__(self, database: Database, defaults: Quotas) -> None:
        self._db, self.defaults = database, defaults

    def get(self, tenant_id: str) -> Quotas:
        """The limits that hold for a tenant."""
        with self._db.read() as connection:
            return quotas_of(connection, tenant_id, self.defaults)

    def own(self, tenant_id: str) -> dict[str, int]:
        """Those of the tenant that are not the defaults."""
        with self._db.read() as connection:
            return _own(connection, tenant_id)

    def used(self, tenant_id: str) -> dict[str, int]:
        """What counts against the limits on jobs and bytes at this moment."""
        with self._db.read() as connection:
            return {
                "max_running_jobs": _running(connection, tenant_id),
                "max_queued_jobs": _live(connection, tenant_id),
                "max_stored_bytes": stored_bytes(connection, tenant_id),
            }

    def set(self, tenant_id: str, changes: Mapping[str, int | None]) -> None:
        """Change some of a tenant's limits; None goes back to the default. Raises NotFound."""
        unknown = set(changes) - set(NAMES)
        if unknown:
            raise ValueError(f"no such limits: {', '.join(sorted(unknown))}")
        Quotas.model_validate({name: value for name, value in changes.items() if value is not None})
        mine = tenant_quotas.c.tenant_id == tenant_id
        with self._db.write() as connection:
            hold(connection, tenant_id)
            values = dict.fromkeys(NAMES) | _own(connection, tenant_id) | dict(changes)
            connection.execute(tenant_quotas.delete().where(mine))
            connection.execute(tenant_quotas.insert().values(tenant_id=tenant_id, **values))
            note(connection, tenant_id, "quotas.set", tenant_id)


def quotas_of(connection: sa.Connection, tenant_id: str, defaults: Quotas) -> Quotas:
    return defaults.model_copy(update=_own(connection, tenant_id))


def merged(row: sa.RowMapping, defaults: Quotas) -> Quotas:
    """The limits in a row that has the tenant's own, where it has some."""
    own = {name: row[name] for name in NAMES if row[name] is not None}
    return defaults.model_copy(update=own) if own else defaults


def _own(connection: sa.Connection, tenant_id: str) -> dict[str, int]:
    query = sa.select(tenant_quotas).where(tenant_quotas.c.tenant_id == tenant_id)
    row = connection.execute(query).mappings().first()
    return {} if row is None else {n: row[n] for n in NAMES if row[n] is not None}


def hold(connection: sa.Connection, tenant_id: str) -> None:
    """Nobody else counts this tenant's things until the transaction ends. Raises NotFound."""
    query = sa.select(tenants.c.id).where(tenants.c.id == tenant_id).with_for_update()
    if connection.scalar(query) is None:
        raise NotFound("tenant", tenant_id)


def require_room(connection: sa.Connection, tenant_id: str, wanted: int, defaults: Quotas) -> None:
    """Room for so many jobs. Raises QuotaExceeded.

    A stage that waits counts: its job must find its room kept.
    """
    hold(connection, tenant_id)
    quotas = quotas_of(connection, tenant_id, defaults)
    most = quotas.max_queued_jobs
    there = _live(connection, tenant_id)
    if most and there + wanted > most:
        raise QuotaExceeded(
            f"{there} of at most {most} jobs are queued or running already; wait for one to end."
        )
    _require_bytes(connection, tenant_id, 1, quotas)  # for what they will make


def require_bytes(
    connection: sa.Connection, tenant_id: str, wanted: int, defaults: Quotas, *, held: bool = True
) -> None:
    """Room for so many bytes more; `held` keeps it until this transaction ends.

    Raises QuotaExceeded.
    """
    if held:
        hold(connection, tenant_id)
    _require_bytes(connection, tenant_id, wanted, quotas_of(connection, tenant_id, defaults))


def _require_bytes(connection: sa.Connection, tenant_id: str, wanted: int, quotas: Quotas) -> None:
    most = quotas.max_stored_bytes
    if not most:
        return
    stored = stored_bytes(connection, tenant_id)
    if stored + wanted > most:
        raise QuotaExceeded(
            f"{stored:,} of at most {most:,} bytes are stored already; delete datasets or adapters "
            "first.",
            passes=False,
        )


def stored_bytes(connection: sa.Connection, tenant_id: str) -> int:
    """Of a tenant's datasets and adapters, and what uploads that are under way will have.

    Checkpoints, which go by themselves, do not count, and no file that is past its time.
    """
    counted: dict[sa.Table, sa.ColumnElement[bool]] = {
        datasets: unexpired(),
        adapters: sa.true(),
        uploads: under_way(),
    }
    total = 0
    for table, where in counted.items():
        query = sa.select(sa.func.coalesce(sa.func.sum(table.c.size_bytes), 0))
        total += int(connection.scalar(query.where(table.c.tenant_id == tenant_id, where)) or 0)
    return total


UPLOAD_S = 3600.0  # from an upload's start to its end, at most


def unexpired() -> sa.ColumnElement[bool]:
    """Datasets whose time is not over."""
    ends_at = datasets.c.created_at + datasets.c.expires_after_s
    return sa.or_(datasets.c.expires_after_s.is_(None), ends_at > now())


def under_way() -> sa.ColumnElement[bool]:
    """Uploads that can still be completed."""
    return sa.and_(uploads.c.status == "pending", uploads.c.created_at + UPLOAD_S > now())


def may_run(connection: sa.Connection, tenant_id: str, defaults: Quotas) -> bool:
    """Whether one more of the tenant's jobs may run; it may until this transaction ends."""
    most = quotas_of(connection, tenant_id, defaults).max_running_jobs
    if not most:
        return True
    hold(connection, tenant_id)
    return _running(connection, tenant_id) < most


def room_to_run(connection: sa.Connection, tenant_id: str, defaults: Quotas) -> int | None:
    """How many more of the tenant's jobs may run now; None: any number."""
    most = quotas_of(connection, tenant_id, defaults).max_running_jobs
    return max(0, most - _running(connection, tenant_id)) if most else None


def _running(connection: sa.Connection, tenant_id: str) -> int:
    query = sa.select(sa.func.count()).where(
        jobs.c.tenant_id == tenant_id, jobs.c.status == Status.RUNNING
    )
    return connection.scalar(query) or 0


def _live(connection: sa.Connection, tenant_id: str) -> int:
    """Jobs that have not ended, and stages that wait."""
    live = sa.select(sa.func.count()).where(
        jobs.c.tenant_id == tenant_id, jobs.c.status.not_in(TERMINAL)
    )
    waiting = sa.select(sa.func.count()).where(
        pipeline_stages.c.tenant_id == tenant_id, pipeline_stages.c.state == "waiting"
    )
    return (connection.scalar(live) or 0) + (connection.scalar(waiting) or 0)
