"""Webhook endpoints: where a tenant wants to hear of its jobs' ends."""

import time
from typing import Any, Literal

import sqlalchemy as sa

from jobs.audit import note
from jobs.database import Database
from jobs.errors import Conflict, NotFound
from jobs.model import Record, Status, new_id
from jobs.pages import Page, newest_first
from jobs.quotas import hold
from jobs.signing import new_nonce, secret_of
from jobs.tables import now, webhook_deliveries, webhook_endpoints

EventType = Literal[
    "fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"
]
TYPES: dict[Status, EventType] = {
    Status.SUCCEEDED: "fine_tuning.job.succeeded",
    Status.FAILED: "fine_tuning.job.failed",
    Status.CANCELLED: "fine_tuning.job.cancelled",
}
MOST_ENDPOINTS = 20  # of a tenant
OLD_SECRET_S = 24 * 3600.0


class Endpoint(Record):
    """`secret` signs what is sent there; `old_secret` too, while it still holds."""

    id: str
    tenant_id: str
    name: str
    url: str
    event_types: tuple[EventType, ...]
    secret: str
    old_secret: str | None
    created_at: float
    updated_at: float

    @property
    def secrets(self) -> tuple[str, ...]:
        return (self.secret, self.old_secret) if self.old_secret else (self.secret,)


class Webhooks:
    def __init__(self, database: Database, pepper: str) -> None:
        self._db, self._pepper = database, pepper

    def create(
        self, tenant_id: str, name: str, url: str, event_types: tuple[EventType, ...]
    ) -> Endpoint:
        """Raises Conflict above the most that a tenant may have."""
        mine = webhook_endpoints.c.tenant_id == tenant_id
        count = sa.select(sa.func.count()).select_from(webhook_endpoints).where(mine)
        values = {
            "id": new_id("we"),
            "tenant_id": tenant_id,
            "name": name,
            "url": url,
            "event_types": event_types,
            "nonce": new_nonce(),
            "created_at": now(),
            "updated_at": now(),
        }
        with self._db.write() as connection:
            hold(connection, tenant_id)
            if (connection.scalar(count) or 0) >= MOST_ENDPOINTS:
                raise Conflict(
                    f"This tenant has {MOST_ENDPOINTS} webhook endpoints, the most there may be; "
                    "delete one first."
                )
            connection.execute(webhook_endpoints.insert().values(values))
            note(connection, tenant_id, "webhook.create", str(values["id"]))
            return self._find(connection, tenant_id, str(values["id"]))

    def get(self, tenant_id: str, endpoint_id: str) -> Endpoint:
        """Raises NotFound, for a foreign id as for an unknown one."""
        with self._db.read() as connection:
            return self._find(connection, tenant_id, endpoint_id)

    def page(self, tenant_id: str, *, after: str | None = None, limit: int = 20) -> Page:
        mine = webhook_endpoints.c.tenant_id == tenant_id
        with self._db.read() as connection:
            return newest_first(
                connection, webhook_endpoints, mine, after=after, limit=limit, record=self._endpoint
            )

    def update(
        self,
        tenant_id: str,
        endpoint_id: str,
        *,
        name: str | None = None,
        url: str | None = None,
        event_types: tuple[EventType, ...] | None = None,
    ) -> Endpoint:
        """Change what is given. Raises NotFound."""
        given = {"name": name, "url": url, "event_types": event_types}
        with self._db.write() as connection:
            before = self._find(connection, tenant_id, endpoint_id, lock=True)
            changed = {
                field: value
                for field, value in given.items()
                if value is not None and value != getattr(before, field)
            }
            if changed:
                self._change(connection, before, "webhook.update", changed)
            return self._find(connection, tenant_id, endpoint_id)

    def rotate(self, tenant_id: str, endpoint_id: str, *, keep_old: bool) -> Endpoint:
        """A new secret; with `keep_old` the old one signs beside it for a day. Raises NotFound."""
        with self._db.write() as connection:
            before = self._find(connection, tenant_id, endpoint_id, lock=True)
            old = {
                "old_nonce": webhook_endpoints.c.nonce if keep_old else None,
                "old_until": now() + OLD_SECRET_S if keep_old else None,
            }
            changed = {"nonce": new_nonce(), **old}
            self._change(connection, before, "webhook.rotate_secret", changed)
            return self._find(connection, tenant_id, endpoint_id)

    def delete(self, tenant_id: str, endpoint_id: str) -> None:
        """With what is on its way there. Raises NotFound."""
        with self._db.write() as connection:
            found = self._find(connection, tenant_id, endpoint_id, lock=True)
            its = webhook_deliveries.c.endpoint_id == found.id
            connection.execute(webhook_deliveries.delete().where(its))
            connection.execute(webhook_endpoints.delete().where(webhook_endpoints.c.id == found.id))
            note(connection, tenant_id, "webhook.delete", endpoint_id)

    def _change(
        self, connection: sa.Connection, endpoint: Endpoint, deed: str, values: dict[str, Any]
    ) -> None:
        this = webhook_endpoints.c.id == endpoint.id
        changed = webhook_endpoints.update().where(this).values(updated_at=now(), **values)
        connection.execute(changed)
        note(connection, endpoint.tenant_id, deed, endpoint.id)

    def _find(
        self, connection: sa.Connection, tenant_id: str, endpoint_id: str, *, lock: bool = False
    ) -> Endpoint:
        query = sa.select(webhook_endpoints).where(
            webhook_endpoints.c.tenant_id == tenant_id, webhook_endpoints.c.id == endpoint_id
        )
        row = connection.execute(query.with_for_update() if lock else query).mappings().first()
        if row is None:
            raise NotFound("webhook", endpoint_id)
        return self._endpoint(row)

    def _endpoint(self, row: sa.RowMapping) -> Endpoint:
        return to_endpoint(row, self._pepper)


def to_endpoint(row: sa.RowMapping, pepper: str) -> Endpoint:
    """With the secrets that hold now."""
    id, old_nonce = row["id"], row["old_nonce"]
    holds = old_nonce is not None and row["old_until"] > time.time()
    return Endpoint(
        id=id,
        tenant_id=row["tenant_id"],
        name=row["name"],
        url=row["url"],
        event_types=row["event_types"],
        secret=secret_of(pepper, id, row["nonce"]),
        old_secret=secret_of(pepper, id, old_nonce) if holds else None,
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
