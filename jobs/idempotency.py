"""Idempotency keys: a request that is sent again gets what its first sending was answered."""

from dataclasses import dataclass
from typing import TypeVar

import sqlalchemy as sa

from jobs.errors import IdempotencyReused
from jobs.model import TERMINAL, Record
from jobs.tables import idempotency_keys, jobs, now

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Idempotency:
    """A client's key, and the hash of the body that came with it.

    With `window_s` it holds for so long, and no longer than the job that it stands for has not
    ended: for requests that nobody gave a key.
    """

    key: str
    body_sha256: str
    window_s: float | None = None


def find_answer(
    connection: sa.Connection, tenant_id: str, idempotency: Idempotency, kind: type[R]
) -> R | None:
    """What the first request with this key was answered. Raises IdempotencyReused."""
    query = sa.select(idempotency_keys).where(_this(tenant_id, idempotency))
    if idempotency.window_s is not None:
        query = query.where(sa.not_(_past(idempotency.window_s)))
    row = connection.execute(query).mappings().first()
    if row is None:
        return None
    if row["body_sha256"] != idempotency.body_sha256:
        raise IdempotencyReused(
            "This Idempotency-Key was used with another body; send a new key with a new request."
        )
    return kind.model_validate(row["answer"])


def remember_answer(
    connection: sa.Connection, tenant_id: str, idempotency: Idempotency, id: str, answer: Record
) -> None:
    """Keep what a request was answered. A key that is there already is an IntegrityError."""
    if idempotency.window_s is not None:
        old = sa.and_(_this(tenant_id, idempotency), _past(idempotency.window_s))
        connection.execute(idempotency_keys.delete().where(old))
    values = {
        "tenant_id": tenant_id,
        "key": idempotency.key,
        "body_sha256": idempotency.body_sha256,
        "object_id": id,
        "answer": answer.model_dump(mode="json"),
        "created_at": now(),
    }
    connection.execute(idempotency_keys.insert().values(values))


def _this(tenant_id: str, idempotency: Idempotency) -> sa.ColumnElement[bool]:
    key = idempotency_keys.c.key == idempotency.key
    return sa.and_(idempotency_keys.c.tenant_id == tenant_id, key)


def _past(window_s: float) -> sa.ColumnElement[bool]:
    ended = sa.select(jobs.c.id).where(jobs.c.status.in_(TERMINAL))
    return sa.or_(
        idempotency_keys.c.created_at < now() - window_s, idempotency_keys.c.object_id.in_(ended)
    )
