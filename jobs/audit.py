"""Who did what to which id: written in the transaction of the deed, and never changed again."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa

from jobs.database import Database
from jobs.model import Record, new_id
from jobs.pages import Page, newest_first
from jobs.tables import audit, now


@dataclass(frozen=True)
class Actor:
    """Who acts: an API key, the operator at the command line, or the service by itself."""

    kind: Literal["key", "operator", "service"]
    key_id: str | None = None
    request_id: str | None = None


class Deed(Record):
    """A line of the audit log. `object_id` is what it was done to."""

    id: str
    tenant_id: str
    actor: str
    key_id: str | None
    request_id: str | None
    action: str
    object_id: str
    created_at: float


SERVICE = Actor("service")
_acting: ContextVar[Actor | None] = ContextVar("acting", default=None)


@contextmanager
def acting_as(actor: Actor) -> Iterator[None]:
    """What is done inside, in this task and in the threads that it asks, is this actor's deed."""
    before = _acting.set(actor)
    try:
        yield
    finally:
        _acting.reset(before)


def note(connection: sa.Connection, tenant_id: str, action: str, object_id: str) -> None:
    """Write a deed down in the caller's transaction: both are there, or neither."""
    actor = _acting.get() or SERVICE
    values = {
        "id": new_id("au"),
        "tenant_id": tenant_id,
        "actor": actor.kind,
        "key_id": actor.key_id,
        "request_id": actor.request_id,
        "action": action,
        "object_id": object_id,
        "created_at": now(),
    }
    connection.execute(audit.insert().values(values))


class Audit:
    def __init__(self, database: Database) -> None:
        self._db = database

    def page(
        self,
        tenant_id: str,
        *,
        object_id: str | None = None,
        after: str | None = None,
        limit: int = 20,
    ) -> Page:
        """A tenant's deeds, newest first. Raises NotFound for a cursor that is not among them."""
        where = audit.c.tenant_id == tenant_id
        if object_id is not None:
            where = sa.and_(where, audit.c.object_id == object_id)
        with self._db.read() as connection:
            return newest_first(connection, audit, where, after=after, limit=limit, record=_deed)


def _deed(row: sa.RowMapping) -> Deed:
    return Deed.model_validate(dict(row))
