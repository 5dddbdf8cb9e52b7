"""Adapter rows: the row decides whether an adapter exists."""

from typing import Any

import sqlalchemy as sa

from jobs.database import Database
from jobs.errors import NotFound
from jobs.model import Adapter
from jobs.pages import Page, newest_first
from jobs.tables import adapters, now


class Adapters:
    def __init__(self, database: Database) -> None:
        self._db = database

    def add(self, adapter: Adapter) -> Adapter:
        """Make a published adapter visible. `created_at` is set by the database."""
        with self._db.write() as connection:
            return insert_adapter(connection, adapter)

    def get(self, tenant_id: str, adapter_id: str) -> Adapter:
        """Raises NotFound, for a foreign id as for an unknown one."""
        query = sa.select(adapters).where(_mine(tenant_id, adapter_id))
        with self._db.read() as connection:
            row = connection.execute(query).mappings().first()
        if row is None:
            raise NotFound("adapter", adapter_id)
        return _adapter(row)

    def page(self, tenant_id: str, *, after: str | None = None, limit: int = 20) -> Page:
        where = adapters.c.tenant_id == tenant_id
        with self._db.read() as connection:
            return newest_first(
                connection, adapters, where, after=after, limit=limit, record=_adapter
            )

    def delete(self, tenant_id: str, adapter_id: str) -> None:
        """Raises NotFound. The row goes first: what has no row does not exist."""
        with self._db.write() as connection:
            deleted = connection.execute(adapters.delete().where(_mine(tenant_id, adapter_id)))
            if deleted.rowcount == 0:
                raise NotFound("adapter", adapter_id)


def insert_adapter(connection: sa.Connection, adapter: Adapter) -> Adapter:
    values: dict[str, Any] = adapter.model_dump(mode="json") | {"created_at": now()}
    query = adapters.insert().values(values).returning(adapters)
    return _adapter(connection.execute(query).mappings().one())


def _mine(tenant_id: str, adapter_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(adapters.c.tenant_id == tenant_id, adapters.c.id == adapter_id)


def _adapter(row: sa.RowMapping) -> Adapter:
    return Adapter.model_validate(dict(row))
