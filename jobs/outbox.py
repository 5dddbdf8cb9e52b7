"""The outbox of webhooks: filled in the transaction of a job's end, emptied by couriers.

A delivery is claimed for as long as a try may take, so that of several processes one makes it; it
is there until its endpoint has answered, or until it is too old. So nothing is lost, and what
arrives twice has the same id.
"""

import json
from dataclasses import dataclass

import sqlalchemy as sa

from jobs.audit import note
from jobs.database import Database
from jobs.model import Job, JobSpec, Status, new_id
from jobs.tables import now, webhook_deliveries, webhook_endpoints
from jobs.webhooks import TYPES, Endpoint, EventType, to_endpoint

CLAIM_S = 60.0  # longer than any try takes


@dataclass(frozen=True)
class Delivery:
    """One event on its way to one endpoint; `tries` is the number of this try, and its fence."""

    event_id: str
    endpoint: Endpoint
    body: bytes
    tries: int


def body_of(event_id: str, type: EventType, occurred_at: float, job_id: str) -> bytes:
    """The same bytes for each try."""
    event = {
        "id": event_id,
        "object": "event",
        "created_at": int(occurred_at),
        "type": type,
        "data": {"id": job_id},
    }
    return json.dumps(event, separators=(",", ":")).encode()


def enqueue(connection: sa.Connection, job: Job, end: Status) -> None:
    """Tell every endpoint of the tenant that wants to hear of this end, in its transaction."""
    type = TYPES.get(end)
    if type is None or not isinstance(job.spec, JobSpec):
        return  # a merge is no fine-tuning job
    mine = webhook_endpoints.c.tenant_id == job.tenant_id
    listening = sa.select(webhook_endpoints.c.id, webhook_endpoints.c.event_types).where(mine)
    event_id = new_id("evt")
    for endpoint_id, types in connection.execute(listening.with_for_update(read=True)):
        if type in types:
            values = {
                "event_id": event_id,
                "endpoint_id": endpoint_id,
                "type": type,
                "job_id": job.id,
                "occurred_at": now(),
                "tries": 0,
                "due_at": now(),
            }
            connection.execute(webhook_deliveries.insert().values(values))


class Outbox:
    def __init__(self, database: Database, pepper: str) -> None:
        self._db, self._pepper = database, pepper

    def claim(self) -> Delivery | None:
        """A delivery that is due, ours for CLAIM_S; None where none is.

        One try at a time goes to an endpoint: a slow one keeps only itself waiting. The tenant with
        the fewest tries under way comes first, then what has been due for longest: one whose
        endpoints are all dead keeps nobody else waiting for longer than a try.
        """
        with self._db.read() as connection:  # nearly always nothing: ask without the write lock
            if connection.execute(_due()).first() is None:
                return None
        with self._db.write() as connection:
            query = _due().with_for_update(of=webhook_deliveries, skip_locked=True)
            row = connection.execute(query).mappings().first()
            if row is None:
                return None
            tries = row["tries"] + 1
            this = _this(row["event_id"], row["id"], row["tries"])
            until = now() + CLAIM_S
            taken = webhook_deliveries.update().where(this)
            connection.execute(taken.values(tries=tries, due_at=until, claimed_until=until))
            body = body_of(row["event_id"], row["type"], row["occurred_at"], row["job_id"])
            return Delivery(row["event_id"], to_endpoint(row, self._pepper), body, tries)

    def delivered(self, delivery: Delivery) -> None:
        """Its endpoint has answered."""
        with self._db.write() as connection:
            connection.execute(webhook_deliveries.delete().where(_try(delivery)))

    def postpone(self, delivery: Delivery, delay_s: float, give_up_after_s: float) -> bool:
        """Try again later; False where it is too old for that, and given up.

        Nothing happens where somebody else has tried since.
        """
        this = _try(delivery)
        late = webhook_deliveries.c.occurred_at + give_up_after_s < now() + delay_s
        with self._db.write() as connection:
            gone = connection.execute(webhook_deliveries.delete().where(this, late))
            if gone.rowcount:
                note(connection, delivery.endpoint.tenant_id, "webhook.give_up", delivery.event_id)
                return False
            later = webhook_deliveries.update().where(this)
            connection.execute(later.values(due_at=now() + delay_s, claimed_until=None))
            return True

    def waiting(self) -> int:
        """How many deliveries there are that have not arrived."""
        with self._db.read() as connection:
            count = sa.select(sa.func.count()).select_from(webhook_deliveries)
            return connection.scalar(count) or 0


def _due() -> sa.Select[tuple[object, ...]]:
    own = ("event_id", "type", "job_id", "occurred_at", "tries")
    tried = webhook_deliveries.c.claimed_until > now()
    busy = sa.select(webhook_deliveries.c.endpoint_id).where(tried)
    under_way = (
        sa.select(webhook_endpoints.c.tenant_id, sa.func.count().label("tries"))
        .join(webhook_deliveries, webhook_deliveries.c.endpoint_id == webhook_endpoints.c.id)
        .where(tried)
        .group_by(webhook_endpoints.c.tenant_id)
        .subquery()
    )
    return (
        sa.select(*(webhook_deliveries.c[name] for name in own), webhook_endpoints)
        .join(webhook_endpoints, webhook_endpoints.c.id == webhook_deliveries.c.endpoint_id)
        .outerjoin(under_way, under_way.c.tenant_id == webhook_endpoints.c.tenant_id)
        .where(webhook_deliveries.c.due_at <= now(), webhook_endpoints.c.id.not_in(busy))
        .order_by(sa.func.coalesce(under_way.c.tries, 0), webhook_deliveries.c.due_at)
        .limit(1)
    )


def _this(event_id: str, endpoint_id: str, tries: int) -> sa.ColumnElement[bool]:
    return sa.and_(
        webhook_deliveries.c.event_id == event_id,
        webhook_deliveries.c.endpoint_id == endpoint_id,
        webhook_deliveries.c.tries == tries,
    )


def _try(delivery: Delivery) -> sa.ColumnElement[bool]:
    return _this(delivery.event_id, delivery.endpoint.id, delivery.tries)
