"""A pipeline on its way: as jobs end, the stages that need them are queued or skipped."""

import sqlalchemy as sa

from jobs.errors import NotFound
from jobs.inputs import stage_of, with_inputs
from jobs.model import JobError
from jobs.origin import Origin
from jobs.pipeline_rows import end_stages, stages_of, start_stage
from jobs.stages import Stage, StageState, verdict
from jobs.submission import Place, insert_job


def move_on(connection: sa.Connection, row: sa.RowMapping) -> int:
    """Give every waiting stage its verdict, until none changes. The caller locked the row."""
    started = 0
    stages = {stage.name: stage for stage in stages_of(connection, row["id"])}
    moved = True
    while moved:
        moved = False
        for stage in [stage for stage in stages.values() if stage.state is StageState.WAITING]:
            now_what = verdict(stage, stages)
            if now_what == "wait":
                continue
            moved = True
            if now_what == "start":
                stages[stage.name] = _start(connection, row, stage, stages)
                started += stages[stage.name].state is StageState.QUEUED
            else:
                end_stages(connection, row["id"], [stage.name], StageState.SKIPPED, now_what)
                update = {"state": StageState.SKIPPED, "error": now_what}
                stages[stage.name] = stage.model_copy(update=update)
    return started


def _start(
    connection: sa.Connection, row: sa.RowMapping, stage: Stage, stages: dict[str, Stage]
) -> Stage:
    """Queue the job of a stage whose inputs are all there."""
    try:
        insert_job(
            connection,
            row["tenant_id"],
            with_inputs(stage.spec, _resolved(stage, stages)),
            base_revision=stage.base_revision,
            queue=row["queue"],
            place=Place(row["id"], stage.name),
            origin=Origin(request_id=row["request_id"], traceparent=row["traceparent"]),
        )
    except NotFound as error:  # kept from deletion while the stage waited, but not from operators
        gone = JobError(code="not_found", message=f"{error} Post the pipeline again.")
        end_stages(connection, row["id"], [stage.name], StageState.FAILED, gone)
        return stage.model_copy(update={"state": StageState.FAILED, "error": gone})
    start_stage(connection, row["id"], stage.name)
    return stage.model_copy(update={"state": StageState.QUEUED})


def _resolved(stage: Stage, stages: dict[str, Stage]) -> dict[str, str]:
    """The adapter ids that a stage starts from, by field."""
    found = {}
    for field, source in stage.inputs.items():
        needed = stage_of(source)
        made = source if needed is None else stages[needed].adapter_id
        assert made is not None, "a job that succeeded has its adapter"
        found[field] = made
    return found
