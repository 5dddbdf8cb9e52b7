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
    oldest: bool = False,
) -> Page:
    """One page of `table`, newest first, or `oldest` first where that is asked for.

    Raises NotFound when `after` is not in the list.
    """
    query = sa.select(table).where(where)
    if after is not None:
        key = sa.select(table.c.created_at).where(where, table.c.id == after)
        created_at = connection.scalar(key)
        if created_at is None:
            raise NotFound("cursor", after)
        position = sa.tuple_(table.c.created_at, table.c.id)
        seen = sa.tuple_(sa.literal(created_at), sa.literal(after))
        query = query.where(position > seen if oldest else position < seen)
    order = [table.c.created_at, table.c.id]
    query = query.order_by(*(order if oldest else [column.desc() for column in order]))
    rows = connection.execute(query.limit(limit + 1)).mappings().all()
    return Page([record(row) for row in rows[:limit]], len(rows) > limit)
