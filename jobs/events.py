"""The append-only record of a job. Numbers are gap-free: the job's row hands them out."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from jobs.model import Event, NewEvent
from jobs.tables import events, jobs, now


def append_events(
    connection: sa.Connection,
    job_id: str,
    attempt: int,
    new: Sequence[NewEvent],
    /,
    *,
    fence: sa.ColumnElement[bool] | None = None,
    **columns: Any,
) -> bool:
    """Number and write `new`, and set `columns` of the job, in the caller's transaction.

    False, and nothing written, when the job's row does not satisfy `fence`.
    """
    where = jobs.c.id == job_id
    query = (
        jobs.update()
        .where(where if fence is None else sa.and_(where, fence))
        .values(event_seq=jobs.c.event_seq + len(new), **columns)
        .returning(jobs.c.event_seq)
    )
    last = connection.scalar(query)
    if last is None:
        return False
    first = last - len(new) + 1
    if new:
        rows = [
            {"job_id": job_id, "attempt": attempt, "seq": first + i} | event.model_dump(mode="json")
            for i, event in enumerate(new)
        ]
        # One statement for each row: as one for all, a long list has more values than SQL takes.
        connection.execute(events.insert().values(created_at=now()), rows)
    return True


def list_events(
    connection: sa.Connection, job_id: str, *, after: int = 0, limit: int = 100
) -> tuple[list[Event], bool]:
    """Events with a number above `after`, oldest first, and whether more follow."""
    query = (
        sa.select(events)
        .where(events.c.job_id == job_id, events.c.seq > after)
        .order_by(events.c.seq)
        .limit(limit + 1)
    )
    rows = connection.execute(query).mappings().all()
    return [Event.model_validate(dict(row)) for row in rows[:limit]], len(rows) > limit


def list_latest(
    connection: sa.Connection, job_id: str, *, before: int | None, limit: int
) -> tuple[list[Event], bool]:
    """Events with a number below `before`, newest first, and whether more follow."""
    query = sa.select(events).where(events.c.job_id == job_id)
    if before is not None:
        query = query.where(events.c.seq < before)
    rows = connection.execute(query.order_by(events.c.seq.desc()).limit(limit + 1)).mappings().all()
    return [Event.model_validate(dict(row)) for row in rows[:limit]], len(rows) > limit


def list_metrics(connection: sa.Connection, job_id: str) -> list[Event]:
    """The metrics of every step, oldest first; of a step that ran twice, the latest attempt's."""
    query = sa.select(events).where(events.c.job_id == job_id, events.c.type == "metrics")
    by_step: dict[int, Event] = {}
    for row in connection.execute(query.order_by(events.c.seq)).mappings():
        event = Event.model_validate(dict(row))
        by_step[int(event.data.get("step", 0))] = event
    return [by_step[step] for step in sorted(by_step)]
