"""The clients' side of the jobs table: submit, look, ask for a change."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import sqlalchemy as sa

from jobs.audit import note
from jobs.database import Database
from jobs.errors import Conflict, NotFound
from jobs.events import append_events, list_events, list_latest, list_metrics
from jobs.idempotency import Idempotency, find_answer, remember_answer
from jobs.model import (
    TERMINAL,
    TRANSITIONS,
    Checkpoint,
    Event,
    Job,
    NewEvent,
    Status,
    Timings,
    Work,
)
from jobs.outbox import enqueue
from jobs.pages import Page, newest_first
from jobs.quotas import DEFAULTS, Quotas, require_room
from jobs.submission import insert_job
from jobs.tables import checkpoints, jobs, now, pipeline_turns

# Made once: clients that poll ask them all the time.
A_JOB = sa.select(jobs).where(
    jobs.c.tenant_id == sa.bindparam("tenant"), jobs.c.id == sa.bindparam("job")
)
A_JOB_LOCKED = A_JOB.with_for_update()


@dataclass(frozen=True)
class Submitted:
    """The job as first answered; `replayed` is true for a repeated request."""

    job: Job
    replayed: bool


class Board:
    def __init__(self, database: Database, defaults: Quotas = DEFAULTS) -> None:
        self._db, self._defaults = database, defaults

    def submit(
        self,
        tenant_id: str,
        spec: Work,
        *,
        base_revision: str,
        queue: str = "default",
        priority: int = 0,
        idempotency: Idempotency | None = None,
        warnings: Sequence[str] = (),
    ) -> Submitted:
        """Queue a job; the same idempotency key gives the same job and the same answer.

        `warnings` are its first events.

        Raises NotFound for the dataset and the adapters that it names, IdempotencyReused for a key
        with another body, and QuotaExceeded.
        """
        try:
            with self._db.write() as connection:
                if idempotency and (found := find_answer(connection, tenant_id, idempotency, Job)):
                    return Submitted(found, replayed=True)
                require_room(connection, tenant_id, 1, self._defaults)
                job_id = insert_job(
                    connection,
                    tenant_id,
                    spec,
                    base_revision=base_revision,
                    queue=queue,
                    priority=priority,
                    warnings=warnings,
                )
                job = find_job(connection, tenant_id, job_id)
                if idempotency:
                    remember_answer(connection, tenant_id, idempotency, job.id, job)
                return Submitted(job, replayed=False)
        except sa.exc.IntegrityError:
            # Somebody with the same key committed first: theirs is the job.
            assert idempotency is not None, "only the idempotency key is unique here"
            found = self.answered(tenant_id, replace(idempotency, window_s=None))
            assert found is not None, "the row that we collided with is committed"
            return Submitted(found, replayed=True)

    def answered(self, tenant_id: str, idempotency: Idempotency) -> Job | None:
        """What the first request with this key was answered. Raises IdempotencyReused."""
        with self._db.read() as connection:
            return find_answer(connection, tenant_id, idempotency, Job)

    def get(self, tenant_id: str, job_id: str) -> Job:
        """Raises NotFound, for a foreign id as for an unknown one."""
        with self._db.read() as connection:
            return find_job(connection, tenant_id, job_id)

    def page(
        self,
        tenant_id: str,
        *,
        status: Status | None = None,
        after: str | None = None,
        limit: int = 20,
    ) -> Page:
        where = jobs.c.tenant_id == tenant_id
        if status is not None:
            where = sa.and_(where, jobs.c.status == status)
        with self._db.read() as connection:
            return newest_first(connection, jobs, where, after=after, limit=limit, record=to_job)

    def trainings(
        self,
        tenant_id: str,
        *,
        metadata: Mapping[str, str] | None = None,
        after: str | None = None,
        limit: int = 20,
    ) -> Page:
        """The jobs that train, newest first: without merges.

        `metadata`: only those that have all of these pairs; empty: only those that have none.
        """
        where = sa.and_(jobs.c.tenant_id == tenant_id, jobs.c.dataset_id.is_not(None))
        if metadata is not None:
            where = sa.and_(where, *_labelled(self._db.dialect, metadata))
        with self._db.read() as connection:
            return newest_first(connection, jobs, where, after=after, limit=limit, record=to_job)

    def cancel(self, tenant_id: str, job_id: str) -> Job:
        """Stop a job: at once where nothing runs it, within a heartbeat where something does.

        Cancelling a cancelled job changes nothing; raises Conflict for one that ended otherwise.
        """
        return self._ask(tenant_id, job_id, "cancel", Status.CANCELLED)

    def pause(self, tenant_id: str, job_id: str) -> Job:
        """Put a job aside, with a checkpoint where it has begun. Raises Conflict when it ended."""
        return self._ask(tenant_id, job_id, "pause", Status.PAUSED)

    def resume(self, tenant_id: str, job_id: str) -> Job:
        """Queue a paused job again. Raises Conflict for one that is not paused."""
        with self._db.write() as connection:
            job = find_job(connection, tenant_id, job_id, lock=True)
            if job.status is not Status.PAUSED:
                raise Conflict(f"Job {job_id} is {job.status}, not paused.")
            set_status(connection, job, Status.QUEUED, "resumed")
            note(connection, tenant_id, "job.resume", job_id)
            return find_job(connection, tenant_id, job_id)

    def _ask(
        self, tenant_id: str, job_id: str, request: Literal["cancel", "pause"], goal: Status
    ) -> Job:
        with self._db.write() as connection:
            job = find_job(connection, tenant_id, job_id, lock=True)
            if job.status is goal or job.requested == "cancel":
                return job
            if job.status in TERMINAL:
                raise Conflict(
                    f"Job {job_id} has {job.status} already; there is nothing to {request}."
                )
            ask(connection, job, request, goal)
            note(connection, tenant_id, f"job.{request}", job_id)
            return find_job(connection, tenant_id, job_id)

    def events(
        self, tenant_id: str, job_id: str, *, after: int = 0, limit: int = 100
    ) -> tuple[list[Event], bool]:
        """Events numbered above `after`, oldest first, and whether more follow."""
        with self._db.read() as connection:
            find_job(connection, tenant_id, job_id)
            return list_events(connection, job_id, after=after, limit=limit)

    def latest_events(
        self, tenant_id: str, job_id: str, *, before: int | None = None, limit: int = 20
    ) -> tuple[list[Event], bool]:
        """Events numbered below `before`, newest first, and whether more follow."""
        with self._db.read() as connection:
            find_job(connection, tenant_id, job_id)
            return list_latest(connection, job_id, before=before, limit=limit)

    def metrics(self, tenant_id: str, job_id: str) -> list[Event]:
        with self._db.read() as connection:
            find_job(connection, tenant_id, job_id)
            return list_metrics(connection, job_id)

    def checkpoints(self, tenant_id: str, job_id: str) -> list[Checkpoint]:
        query = sa.select(checkpoints).where(checkpoints.c.job_id == job_id)
        with self._db.read() as connection:
            find_job(connection, tenant_id, job_id)
            rows = connection.execute(query.order_by(checkpoints.c.step.desc())).mappings()
            return [Checkpoint.model_validate(dict(row)) for row in rows]

    def checkpoint(self, tenant_id: str, job_id: str, checkpoint_id: str) -> Checkpoint:
        """Raises NotFound, also for a checkpoint that the job has let go of."""
        query = sa.select(checkpoints).where(
            checkpoints.c.job_id == job_id, checkpoints.c.id == checkpoint_id
        )
        with self._db.read() as connection:
            find_job(connection, tenant_id, job_id)
            row = connection.execute(query).mappings().first()
        if row is None:
            raise NotFound("checkpoint", checkpoint_id)
        return Checkpoint.model_validate(dict(row))


def find_job(connection: sa.Connection, tenant_id: str, job_id: str, *, lock: bool = False) -> Job:
    found = connection.execute(
        A_JOB_LOCKED if lock else A_JOB, {"tenant": tenant_id, "job": job_id}
    )
    row = found.mappings().first()
    if row is None:
        raise NotFound("job", job_id)
    return to_job(row)


def ask(
    connection: sa.Connection, job: Job, request: Literal["cancel", "pause"], goal: Status
) -> None:
    """Tell the worker of a running job; any other becomes `goal` at once. The caller locked it."""
    if job.status is Status.RUNNING:
        asked = NewEvent(type="message", message=f"{request} requested")
        append_events(connection, job.id, job.attempt, [asked], requested=request)
    else:
        set_status(connection, job, goal, f"{goal} on request")


def set_status(
    connection: sa.Connection,
    job: Job,
    goal: Status,
    message: str,
    *,
    level: Literal["info", "warn", "error"] = "info",
    **columns: Any,
) -> None:
    """Change a job's status, with its event, in the caller's transaction, which holds the row."""
    if goal not in TRANSITIONS[job.status]:
        raise Conflict(f"Job {job.id} is {job.status}; it cannot become {goal}.")
    columns |= {"status": goal, "requested": None, "lease_owner": None, "lease_expires_at": None}
    if goal in TERMINAL:
        columns["finished_at"] = now()
    event = NewEvent(type="state", message=message, level=level, data={"status": goal})
    append_events(connection, job.id, job.attempt, [event], **columns)
    if goal in TERMINAL:
        enqueue(connection, job, goal)
    if goal in TERMINAL and job.pipeline_id is not None:
        turn = {"job_id": job.id, "pipeline_id": job.pipeline_id}
        connection.execute(pipeline_turns.insert().values(turn))


def _labelled(dialect: str, metadata: Mapping[str, str]) -> list[sa.ColumnElement[bool]]:
    """That a job's metadata has these pairs; of none at all, that it has none."""
    spec = jobs.c.spec
    each = (
        sa.func.json_each(spec, "$.metadata")
        if dialect == "sqlite"
        else sa.func.json_each_text(spec["metadata"])
    ).table_valued("key", "value")
    pairs = sa.select(sa.literal(1)).select_from(each).correlate(jobs)
    if not metadata:
        return [sa.not_(sa.exists(pairs))]
    return [
        sa.exists(pairs.where(each.c.key == key, each.c.value == value))
        for key, value in metadata.items()
    ]


def to_job(row: sa.RowMapping) -> Job:
    values = {name: row[name] for name in Job.model_fields if name in row}
    return Job.model_validate(values | {"timings": _timings(row)})


def _timings(row: sa.RowMapping) -> Timings:
    def between(start: str, end: str) -> float | None:
        if row[start] is None or row[end] is None:
            return None
        return round(float(row[end] - row[start]), 3)

    return Timings(
        queued_s=between("created_at", "started_at"),
        first_step_s=between("created_at", "first_step_at"),
        training_s=row["training_s"],
        total_s=between("created_at", "finished_at"),
    )
