"""Idempotency keys: a request that is sent again gets what its first sending was answered."""

from dataclasses import dataclass
from typing import TypeVar

import sqlalchemy as sa

from jobs.errors import IdempotencyReused
from jobs.model import Record
from jobs.tables import idempotency_keys, now

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Idempotency:
    """A client's key, and the hash of the body that came with it."""

    key: str
    body_sha256: str


def find_answer(
    connection: sa.Connection, tenant_id: str, idempotency: Idempotency, kind: type[R]
) -> R | None:
    """What the first request with this key was answered. Raises IdempotencyReused."""
    query = sa.select(idempotency_keys).where(
        idempotency_keys.c.tenant_id == tenant_id, idempotency_keys.c.key == idempotency.key
    )
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
    values = {
        "tenant_id": tenant_id,
        "key": idempotency.key,
        "body_sha256": idempotency.body_sha256,
        "object_id": id,
        "answer": answer.model_dump(mode="json"),
        "created_at": now(),
    }
    connection.execute(idempotency_keys.insert().values(values))
