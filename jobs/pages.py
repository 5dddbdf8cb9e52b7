"""Lists by cursor: newest first, `after` is the last id the client has seen."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import sqlalchemy as sa

from jobs.errors import NotFound

T = TypeVar("T")


class Page(NamedTuple):
    data: list[Any]
    has_more: bool


def newest_first(
    connection: sa.Connection,
    table: sa.Table,
    where: sa.ColumnElement[bool],
    *,
    after: str | None,
    limit: int,
    record: Callable[[sa.RowMapping], T],
) -> Page:
    """One page of `table`, newest first. Raises NotFound when `after` is not in the list."""
    query = sa.select(table).where(where)
    if after is not None:
        key = sa.select(table.c.created_at).where(where, table.c.id == after)
        created_at = connection.scalar(key)
        if created_at is None:
            raise NotFound("cursor", after)
        position = sa.tuple_(table.c.created_at, table.c.id)
        query = query.where(position < sa.tuple_(sa.literal(created_at), sa.literal(after)))
    query = query.order_by(table.c.created_at.desc(), table.c.id.desc()).limit(limit + 1)
    rows = connection.execute(query).mappings().all()
    return Page([record(row) for row in rows[:limit]], len(rows) > limit)
