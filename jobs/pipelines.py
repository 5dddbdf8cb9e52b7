"""Pipelines in the table: posted whole, looked at, cancelled as one, moved on as jobs end.

A pipeline's row is locked before any row of its jobs, by everyone: so nobody waits in a circle, and
of several that move it on at once each finds what the one before has done.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from jobs.audit import note
from jobs.board import ask, find_job
from jobs.database import Database
from jobs.errors import Conflict
from jobs.idempotency import Idempotency, find_answer, remember_answer
from jobs.model import TERMINAL, Status
from jobs.moving import move_on
from jobs.pages import Page, newest_first
from jobs.pipeline_rows import end_stages, find_pipeline, insert_pipeline, to_pipeline, to_pipelines
from jobs.quotas import DEFAULTS, Quotas, require_room
from jobs.stages import LIVE, Pipeline, PipelineSpec, PlannedStage, StageState
from jobs.tables import now, pipeline_turns, pipelines


@dataclass(frozen=True)
class SubmittedPipeline:
    """The pipeline as first answered; `replayed` is true for a repeated request."""

    pipeline: Pipeline
    replayed: bool


class Pipelines:
    def __init__(self, database: Database, defaults: Quotas = DEFAULTS) -> None:
        self._db, self._defaults = database, defaults

    def submit(
        self,
        tenant_id: str,
        spec: PipelineSpec,
        stages: Sequence[PlannedStage],
        *,
        queue: str = "default",
        idempotency: Idempotency | None = None,
    ) -> SubmittedPipeline:
        """Store a planned pipeline and queue the jobs that need no other, all or nothing.

        Raises NotFound for what a stage names and is gone by now, IdempotencyReused for a key with
        another body, and QuotaExceeded.
        """
        try:
            with self._db.write() as connection:
                if idempotency and (
                    found := find_answer(connection, tenant_id, idempotency, Pipeline)
                ):
                    return SubmittedPipeline(found, replayed=True)
                require_room(connection, tenant_id, len(stages), self._defaults)
                pipeline_id = insert_pipeline(connection, tenant_id, spec, stages, queue)
                note(connection, tenant_id, "pipeline.create", pipeline_id)
                move_on(connection, find_pipeline(connection, pipeline_id, lock=True))
                pipeline = to_pipeline(connection, find_pipeline(connection, pipeline_id))
                if idempotency:
                    remember_answer(connection, tenant_id, idempotency, pipeline_id, pipeline)
                return SubmittedPipeline(pipeline, replayed=False)
        except sa.exc.IntegrityError:
            # Somebody with the same key committed first: theirs is the pipeline.
            assert idempotency is not None, "only the idempotency key is not made anew here"
            found = self.answered(tenant_id, idempotency)
            assert found is not None, "the row that we collided with is committed"
            return SubmittedPipeline(found, replayed=True)

    def answered(self, tenant_id: str, idempotency: Idempotency) -> Pipeline | None:
        """What the first request with this key was answered. Raises IdempotencyReused."""
        with self._db.read() as connection:
            return find_answer(connection, tenant_id, idempotency, Pipeline)

    def get(self, tenant_id: str, pipeline_id: str) -> Pipeline:
        """Raises NotFound, for a foreign id as for an unknown one."""
        with self._db.read() as connection:
            return to_pipeline(connection, find_pipeline(connection, pipeline_id, tenant_id))

    def page(self, tenant_id: str, *, after: str | None = None, limit: int = 20) -> Page:
        mine = pipelines.c.tenant_id == tenant_id
        with self._db.read() as connection:
            found = newest_first(
                connection, pipelines, mine, after=after, limit=limit, record=lambda row: row
            )
            return Page(to_pipelines(connection, found.data), found.has_more)

    def cancel(self, tenant_id: str, pipeline_id: str) -> Pipeline:
        """Stop every stage: at once what waits, within a heartbeat what runs.

        Cancelling a cancelled pipeline changes nothing; raises Conflict for one that ended
        otherwise.
        """
        with self._db.write() as connection:
            row = find_pipeline(connection, pipeline_id, tenant_id, lock=True)
            pipeline = to_pipeline(connection, row)
            if row["cancelled_at"] is not None:
                return pipeline
            if pipeline.status in TERMINAL:
                raise Conflict(
                    f"Pipeline {pipeline_id} has {pipeline.status} already; there is nothing to "
                    "cancel."
                )
            mine = pipelines.c.id == pipeline_id
            connection.execute(pipelines.update().where(mine).values(cancelled_at=now()))
            _cancel_stages(connection, pipeline)
            note(connection, tenant_id, "pipeline.cancel", pipeline_id)
            return to_pipeline(connection, find_pipeline(connection, pipeline_id))

    def unmoved(self) -> list[str]:
        """Pipelines whose jobs have ended since they were last moved on."""
        query = sa.select(pipeline_turns.c.pipeline_id).distinct().limit(100)
        with self._db.read() as connection:
            return list(connection.scalars(query))

    def move(self, pipeline_id: str) -> int:
        """Queue or skip the stages that the ends of this pipeline's jobs decide.

        How many were queued. Safe to repeat, and from several at once: a stage has one job.
        """
        ended = pipeline_turns.c.pipeline_id == pipeline_id
        with self._db.write() as connection:
            row = find_pipeline(connection, pipeline_id, lock=True)
            connection.execute(pipeline_turns.delete().where(ended))
            return move_on(connection, row)


def _cancel_stages(connection: sa.Connection, pipeline: Pipeline) -> None:
    waiting = [stage.name for stage in pipeline.stages if stage.state is StageState.WAITING]
    end_stages(connection, pipeline.id, waiting, StageState.CANCELLED, None)
    for stage in pipeline.stages:
        if stage.job_id is not None and stage.state in LIVE:
            job = find_job(connection, pipeline.tenant_id, stage.job_id, lock=True)
            if job.status not in TERMINAL and job.requested != "cancel":
                ask(connection, job, "cancel", Status.CANCELLED)
