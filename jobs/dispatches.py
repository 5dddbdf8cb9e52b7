"""A dispatcher's side of the jobs table: what waits, what was started elsewhere, what to tell."""

from collections.abc import Collection

import sqlalchemy as sa

from jobs.board import to_job
from jobs.database import Database
from jobs.events import append_events
from jobs.leases import best_first
from jobs.model import Job, NewEvent, Status
from jobs.quotas import DEFAULTS, Quotas, room_to_run
from jobs.tables import events, jobs


class Dispatches:
    def __init__(self, database: Database, quotas: Quotas = DEFAULTS) -> None:
        self._db, self._quotas = database, quotas

    def waiting(self, queue: str, limit: int) -> list[Job]:
        """Queued jobs that may run, the best first, as workers would claim them."""
        found: list[Job] = []
        rooms: dict[str, int | None] = {}
        with self._db.read() as connection:
            for row in connection.execute(best_first(queue)).mappings():
                tenant = row["tenant_id"]
                if tenant not in rooms:
                    rooms[tenant] = room_to_run(connection, tenant, self._quotas)
                room = rooms[tenant]
                if room == 0:
                    continue
                rooms[tenant] = None if room is None else room - 1
                found.append(to_job(row))
                if len(found) == limit:
                    break
        return found

    def find(self, job_ids: Collection[str]) -> dict[str, Job]:
        """The jobs that there are among these, whoever's they are."""
        with self._db.read() as connection:
            rows = connection.execute(sa.select(jobs).where(jobs.c.id.in_(job_ids))).mappings()
            return {row["id"]: to_job(row) for row in rows}

    def tell(self, job_id: str, attempt: int, message: str) -> bool:
        """Add an event to a job that waits for this attempt, or is in it; the same one only once.

        False where it was told before, or the job is elsewhere by now.
        """
        same = sa.select(events.c.seq).where(
            events.c.job_id == job_id, events.c.attempt == attempt, events.c.message == message
        )
        waits = sa.and_(jobs.c.status == Status.QUEUED, jobs.c.attempt == attempt - 1)
        runs = sa.and_(jobs.c.status == Status.RUNNING, jobs.c.attempt == attempt)
        with self._db.write() as connection:
            locked = sa.select(jobs.c.id).where(jobs.c.id == job_id).with_for_update()
            connection.execute(locked)
            if connection.execute(same.limit(1)).first() is not None:
                return False
            event = NewEvent(type="message", message=message)
            return append_events(connection, job_id, attempt, [event], fence=sa.or_(waits, runs))
