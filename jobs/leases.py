"""The workers' side of the jobs table. Every write is fenced by the attempt's number."""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from engine.estimate.model import Actual, Estimate
from jobs.adapters import insert_adapter
from jobs.board import set_status, to_job
from jobs.database import Database
from jobs.datasets import find_dataset
from jobs.errors import LeaseLost
from jobs.events import append_events
from jobs.mixture import datasets_of
from jobs.model import (
    Adapter,
    Checkpoint,
    Claim,
    Directive,
    Job,
    JobError,
    JobSpec,
    NewEvent,
    Progress,
    Status,
)
from jobs.origin import Origin
from jobs.quotas import DEFAULTS, Quotas, may_run
from jobs.tables import attempts, checkpoints, jobs, now, tenants
from jobs.throughputs import insert_throughput


@dataclass(frozen=True)
class Swept:
    """Leases that had run out: jobs queued again (or paused), and jobs that ended."""

    requeued: tuple[str, ...]
    failed: tuple[str, ...]


# What becomes of a running job that is let go of, by what its client has asked for.
_GOALS: dict[str | None, Status] = {
    None: Status.QUEUED,
    "pause": Status.PAUSED,
    "cancel": Status.CANCELLED,
}


class Leases:
    def __init__(
        self, database: Database, *, lease_s: float, max_attempts: int, quotas: Quotas = DEFAULTS
    ) -> None:
        self._db, self._lease_s, self._max_attempts = database, lease_s, max_attempts
        self._quotas = quotas

    def claim(self, owner: str, queue: str) -> Claim | None:
        """The best queued job, now ours as a new attempt, or None when there is none.

        Best: highest priority, then the tenant with the fewest running jobs, then the one whose
        turn is longest ago, then the oldest job. Tenants that run as many as they may are passed
        over.
        """
        best = best_first(queue).limit(1).with_for_update(skip_locked=True, of=jobs)
        full: list[str] = []
        with self._db.write() as connection:
            while True:
                query = best.where(jobs.c.tenant_id.not_in(full))
                row = connection.execute(query).mappings().first()
                if row is None:
                    return None
                if may_run(connection, row["tenant_id"], self._quotas):
                    return self._take(connection, to_job(row), owner)
                full.append(row["tenant_id"])

    def claim_attempt(self, owner: str, job_id: str, attempt: int) -> Claim | None:
        """This attempt of a queued job, now ours; None where it is not the job's next one."""
        wanted = (
            sa.select(jobs)
            .where(jobs.c.id == job_id, jobs.c.attempt == attempt - 1)
            .where(jobs.c.status == Status.QUEUED)
            .with_for_update()
        )
        with self._db.write() as connection:
            row = connection.execute(wanted).mappings().first()
            return None if row is None else self._take(connection, to_job(row), owner)

    def look(self, job_id: str, attempt: int) -> Claim:
        """What the owner of a running attempt was given. Raises LeaseLost."""
        with self._db.read() as connection:
            query = sa.select(jobs).where(jobs.c.id == job_id, _owned(attempt))
            row = connection.execute(query).mappings().first()
            if row is None:
                raise _lost(job_id, attempt)
            return self._claim(connection, to_job(row))

    def heed(self, job_id: str, attempt: int) -> Directive:
        """What the client asked of an attempt, whoever keeps its lease. Raises LeaseLost."""
        return self.look(job_id, attempt).job.requested or "continue"

    def _take(self, connection: sa.Connection, job: Job, owner: str) -> Claim:
        attempt = job.attempt + 1
        event = NewEvent(
            type="state",
            message=f"running, attempt {attempt}",
            data={"status": Status.RUNNING, "attempt": attempt},
        )
        append_events(
            connection,
            job.id,
            attempt,
            [event],
            status=Status.RUNNING,
            attempt=attempt,
            lease_owner=owner,
            lease_expires_at=now() + self._lease_s,
            started_at=sa.func.coalesce(jobs.c.started_at, now()),
        )
        served = tenants.update().where(tenants.c.id == job.tenant_id)
        connection.execute(served.values(served_at=now()))
        claimed = {"job_id": job.id, "attempt": attempt, "owner": owner, "claimed_at": now()}
        connection.execute(attempts.insert().values(claimed))
        return self._claim(connection, job)

    def _claim(self, connection: sa.Connection, job: Job) -> Claim:
        """What whoever runs a job is given beside its row."""
        row = connection.execute(sa.select(jobs).where(jobs.c.id == job.id)).mappings().one()
        newest = (
            sa.select(checkpoints)
            .where(checkpoints.c.job_id == job.id)
            .order_by(checkpoints.c.step.desc(), checkpoints.c.attempt.desc())
            .limit(1)
        )
        found = connection.execute(newest).mappings().first()
        named = datasets_of(job.spec) if isinstance(job.spec, JobSpec) else {}
        its_rows = {
            field: find_dataset(connection, job.tenant_id, id) for field, id in named.items()
        }
        return Claim(
            job=to_job(row),
            datasets=its_rows,
            checkpoint=Checkpoint.model_validate(dict(found)) if found else None,
            origin=Origin(request_id=row["request_id"], traceparent=row["traceparent"]),
        )

    def renew(self, job_id: str, attempt: int) -> Directive:
        """Keep the lease, and learn what the client asked for. Raises LeaseLost."""
        query = (
            jobs.update()
            .where(jobs.c.id == job_id, _owned(attempt))
            .values(lease_expires_at=now() + self._lease_s)
            .returning(jobs.c.requested)
        )
        with self._db.write() as connection:
            row = connection.execute(query).first()
        if row is None:
            raise _lost(job_id, attempt)
        requested: Directive | None = row[0]
        return requested or "continue"

    def record(
        self,
        job_id: str,
        attempt: int,
        events: list[NewEvent],
        progress: Progress | None = None,
        *,
        first_step: bool = False,
    ) -> None:
        """Append events and move the progress, in one transaction. Raises LeaseLost."""
        columns: dict[str, Any] = {}
        if progress is not None:
            columns["progress"] = progress.model_dump(mode="json")
        if first_step:
            columns["first_step_at"] = sa.func.coalesce(jobs.c.first_step_at, now())
        with self._db.write() as connection:
            if not append_events(
                connection, job_id, attempt, events, fence=_owned(attempt), **columns
            ):
                raise _lost(job_id, attempt)

    def add_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Make an uploaded checkpoint count; twice is once. Raises LeaseLost."""
        values = checkpoint.model_dump(mode="json") | {"created_at": now()}
        saved = NewEvent(
            type="checkpoint",
            message=f"checkpoint at step {checkpoint.step}",
            data={"checkpoint": checkpoint.id, "step": checkpoint.step},
        )
        same = sa.select(checkpoints.c.id).where(checkpoints.c.id == checkpoint.id)
        with self._db.write() as connection:
            if connection.scalar(same) is not None:
                return
            fence = _owned(checkpoint.attempt)
            job_id, attempt = checkpoint.job_id, checkpoint.attempt
            if not append_events(connection, job_id, attempt, [saved], fence=fence):
                raise _lost(job_id, attempt)
            connection.execute(checkpoints.insert().values(values))

    def drop_checkpoints(self, job_id: str, attempt: int, *, keep: int) -> list[Checkpoint]:
        """Forget all but the newest `keep`; the caller deletes the files. Raises LeaseLost."""
        mine = checkpoints.c.job_id == job_id
        newest = (
            sa.select(checkpoints.c.id)
            .where(mine)
            .order_by(checkpoints.c.step.desc(), checkpoints.c.attempt.desc())
            .limit(keep)
        )
        with self._db.write() as connection:
            self._held(connection, job_id, attempt)
            kept = connection.scalars(newest).all()
            old = checkpoints.delete().where(mine, checkpoints.c.id.not_in(kept))
            rows = connection.execute(old.returning(checkpoints)).mappings()
            return [Checkpoint.model_validate(dict(row)) for row in rows]

    def forget_checkpoint(self, job_id: str, attempt: int, checkpoint_id: str) -> None:
        """A checkpoint that cannot be read: the next attempt takes the one before it.

        Raises LeaseLost.
        """
        with self._db.write() as connection:
            self._held(connection, job_id, attempt)
            mine = sa.and_(checkpoints.c.job_id == job_id, checkpoints.c.id == checkpoint_id)
            connection.execute(checkpoints.delete().where(mine))

    def note_estimate(self, job_id: str, attempt: int, estimate: Estimate) -> None:
        """Keep what the job is expected to take. Raises LeaseLost."""
        values = estimate.model_dump(mode="json")
        mine = sa.and_(jobs.c.id == job_id, _owned(attempt))
        with self._db.write() as connection:
            changed = connection.execute(jobs.update().where(mine).values(estimate=values))
            if not changed.rowcount:
                raise _lost(job_id, attempt)

    def succeed(
        self,
        job_id: str,
        attempt: int,
        adapter: Adapter,
        training_s: float,
        actual: Actual | None = None,
    ) -> None:
        """Finish with a published adapter: its row and the job's end are one transaction.

        Raises LeaseLost, and then the adapter does not exist. A cancel that came before this
        moment wins over the result: it raises LeaseLost too, after the job became cancelled.
        `actual` is what the run came to, which later estimates learn from.
        """
        with self._db.write() as connection:
            job = self._held(connection, job_id, attempt)
            if cancelled := job.requested == "cancel":
                set_status(connection, job, Status.CANCELLED, "cancelled on request")
            else:
                insert_adapter(connection, adapter)
                set_status(
                    connection,
                    job,
                    Status.SUCCEEDED,
                    f"succeeded with adapter {adapter.id}",
                    adapter_id=adapter.id,
                    training_s=training_s,
                    actual=actual.model_dump(mode="json") if actual else None,
                )
                if actual is not None:
                    insert_throughput(connection, job, actual)
            _end(connection, job, "cancelled" if cancelled else "succeeded")
        if cancelled:
            raise LeaseLost(f"Job {job_id} was cancelled before its adapter was published.")

    def fail(self, job_id: str, attempt: int, error: JobError) -> None:
        """Finish with an error that trying again would not cure. Raises LeaseLost."""
        with self._db.write() as connection:
            job = self._held(connection, job_id, attempt)
            self._give_up(connection, job, error)

    def retry(self, job_id: str, attempt: int, error: JobError) -> None:
        """Queue again after a failure that may pass, or fail when it has happened too often.

        A pause or a cancel that waits is granted instead. Raises LeaseLost.
        """
        with self._db.write() as connection:
            job = self._held(connection, job_id, attempt)
            self._lose(connection, job, error)

    def cancelled(self, job_id: str, attempt: int) -> None:
        """The attempt has stopped as the client asked. Raises LeaseLost."""
        with self._db.write() as connection:
            job = self._held(connection, job_id, attempt)
            set_status(connection, job, Status.CANCELLED, "cancelled on request")
            _end(connection, job, "cancelled")

    def release(self, job_id: str, attempt: int) -> Status:
        """Hand a job back without charging the attempt: paused or cancelled where the client has
        asked for it by now, else queued. Raises LeaseLost.
        """
        with self._db.write() as connection:
            job = self._held(connection, job_id, attempt)
            goal = _GOALS[job.requested]
            message = "released by its worker" if goal is Status.QUEUED else f"{goal} on request"
            set_status(connection, job, goal, message)
            _end(connection, job, "cancelled" if goal is Status.CANCELLED else "released")
            return goal

    def sweep(self) -> Swept:
        """Take jobs from owners whose lease has run out."""
        requeued: list[str] = []
        failed: list[str] = []
        expired = (
            sa.select(jobs)
            .where(jobs.c.status == Status.RUNNING, jobs.c.lease_expires_at < now())
            .limit(100)
        )
        with self._db.read() as connection:  # nearly always nothing: ask without the write lock
            if connection.execute(expired).first() is None:
                return Swept((), ())
        with self._db.write() as connection:
            locked = expired.with_for_update(skip_locked=True)
            for row in connection.execute(locked).mappings().all():
                job = to_job(row)
                lost = JobError(
                    code="worker_lost",
                    message="The worker stopped answering: killed, out of memory or cut off.",
                )
                (requeued if self._lose(connection, job, lost) else failed).append(job.id)
        return Swept(tuple(requeued), tuple(failed))

    def _lose(self, connection: sa.Connection, job: Job, error: JobError) -> bool:
        """Charge the attempt: True when the job may go on, False when it has ended."""
        goal = _GOALS[job.requested]
        if goal is Status.CANCELLED:
            set_status(connection, job, goal, "cancelled on request")
            _end(connection, job, "cancelled")
            return False
        losses = connection.scalar(sa.select(jobs.c.losses).where(jobs.c.id == job.id)) or 0
        if losses + 1 >= self._max_attempts or _seen_enough(connection, job, error):
            text = f"{error.message} This happened {losses + 1} times, so the job was given up."
            self._give_up(connection, job, error.model_copy(update={"message": text}))
            return False
        after = "queued again" if goal is Status.QUEUED else f"{goal} on request"
        message = f"attempt {job.attempt} lost, {after}: {error.message}"
        set_status(connection, job, goal, message, level="warn", losses=losses + 1)
        _end(connection, job, error.code)
        return True

    def _give_up(self, connection: sa.Connection, job: Job, error: JobError) -> None:
        stored = error.model_dump(mode="json")
        set_status(connection, job, Status.FAILED, error.message, level="error", error=stored)
        _end(connection, job, error.code)

    def _held(self, connection: sa.Connection, job_id: str, attempt: int) -> Job:
        query = sa.select(jobs).where(jobs.c.id == job_id, _owned(attempt)).with_for_update()
        row = connection.execute(query).mappings().first()
        if row is None:
            raise _lost(job_id, attempt)
        return to_job(row)

    def queued(self, queue: str) -> int:
        """How many jobs wait in this queue."""
        waiting = sa.and_(jobs.c.queue == queue, jobs.c.status == Status.QUEUED)
        with self._db.read() as connection:
            return connection.scalar(sa.select(sa.func.count()).where(waiting)) or 0


def best_first(queue: str) -> sa.Select[Any]:
    """The queued jobs of a queue: by priority, then fair to tenants, then the oldest first."""
    rival = jobs.alias("rival")
    running = (
        sa.select(rival.c.tenant_id, sa.func.count().label("held"))
        .where(rival.c.status == Status.RUNNING)
        .group_by(rival.c.tenant_id)
        .subquery("running")
    )
    return (
        sa.select(jobs)
        .outerjoin(running, running.c.tenant_id == jobs.c.tenant_id)
        .outerjoin(tenants, tenants.c.id == jobs.c.tenant_id)
        .where(jobs.c.queue == queue, jobs.c.status == Status.QUEUED)
        .order_by(
            jobs.c.priority.desc(),
            sa.func.coalesce(running.c.held, 0),
            sa.func.coalesce(tenants.c.served_at, 0.0),
            jobs.c.created_at,
            jobs.c.id,
        )
    )


def _owned(attempt: int) -> sa.ColumnElement[bool]:
    return sa.and_(jobs.c.attempt == attempt, jobs.c.status == Status.RUNNING)


def _lost(job_id: str, attempt: int) -> LeaseLost:
    return LeaseLost(f"Attempt {attempt} of job {job_id} has lost its lease.")


def _seen_enough(connection: sa.Connection, job: Job, error: JobError) -> bool:
    """Memory that was too small twice is too small: the third attempt would take a worker too."""
    same = sa.and_(attempts.c.job_id == job.id, attempts.c.outcome == error.code)
    seen = connection.scalar(sa.select(sa.func.count()).select_from(attempts).where(same)) or 0
    return error.code == "out_of_memory" and seen > 0


def _end(connection: sa.Connection, job: Job, outcome: str) -> None:
    connection.execute(
        attempts.update()
        .where(attempts.c.job_id == job.id, attempts.c.attempt == job.attempt)
        .values(ended_at=now(), outcome=outcome)
    )
