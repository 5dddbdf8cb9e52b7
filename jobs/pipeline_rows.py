"""Rows of pipelines and of their stages: written once, read with what their jobs have come to."""

from collections.abc import Iterable, Sequence

import sqlalchemy as sa

from jobs.adapters import find_adapter
from jobs.datasets import find_dataset
from jobs.errors import NotFound
from jobs.inputs import inputs_of, stage_of
from jobs.mixture import datasets_of
from jobs.model import TERMINAL, JobError, JobSpec, new_id
from jobs.origin import here
from jobs.stages import Pipeline, PipelineSpec, PlannedStage, Stage, StageState, status_of
from jobs.tables import jobs, now, pipeline_stages, pipelines, stage_inputs


def insert_pipeline(
    connection: sa.Connection,
    tenant_id: str,
    spec: PipelineSpec,
    stages: Sequence[PlannedStage],
    queue: str,
) -> str:
    pipeline_id = new_id("pl")
    values = {
        "id": pipeline_id,
        "tenant_id": tenant_id,
        "name": spec.name,
        "metadata": spec.metadata,
        "queue": queue,
        "created_at": now(),
    }
    connection.execute(pipelines.insert().values(values | here().model_dump()))
    for position, stage in enumerate(stages):
        _insert_stage(connection, tenant_id, pipeline_id, position, stage)
    return pipeline_id


def _insert_stage(
    connection: sa.Connection, tenant_id: str, pipeline_id: str, position: int, stage: PlannedStage
) -> None:
    """A stage that waits. What it names and is there already stays there from now on."""
    dataset_ids = list(datasets_of(stage.spec).values())
    for dataset_id in dataset_ids:
        find_dataset(connection, tenant_id, dataset_id, lock=True)
    values = {
        "pipeline_id": pipeline_id,
        "name": stage.name,
        "position": position,
        "tenant_id": tenant_id,
        "spec": stage.spec.model_dump(mode="json"),
        "dataset_id": dataset_ids[0],
        "base_revision": stage.base_revision,
        "state": StageState.WAITING,
    }
    connection.execute(pipeline_stages.insert().values(values))
    for field, source in inputs_of(stage.spec).items():
        if stage_of(source) is None:
            find_adapter(connection, tenant_id, source, lock=True)
        named = {"pipeline_id": pipeline_id, "stage": stage.name, "field": field, "source": source}
        connection.execute(stage_inputs.insert().values(named))


def find_pipeline(
    connection: sa.Connection,
    pipeline_id: str,
    tenant_id: str | None = None,
    *,
    lock: bool = False,
) -> sa.RowMapping:
    query = sa.select(pipelines).where(pipelines.c.id == pipeline_id)
    if tenant_id is not None:
        query = query.where(pipelines.c.tenant_id == tenant_id)
    row = connection.execute(query.with_for_update() if lock else query).mappings().first()
    if row is None:
        raise NotFound("pipeline", pipeline_id)
    return row


def to_pipeline(connection: sa.Connection, row: sa.RowMapping) -> Pipeline:
    return to_pipelines(connection, [row])[0]


def to_pipelines(connection: sa.Connection, rows: Sequence[sa.RowMapping]) -> list[Pipeline]:
    """Pipelines with their stages, in two queries for all of them."""
    stages = _stages(connection, [row["id"] for row in rows])
    return [_to_pipeline(row, stages[row["id"]]) for row in rows]


def stages_of(connection: sa.Connection, pipeline_id: str) -> list[Stage]:
    """In the order they were posted in, each with what its job has come to."""
    return _stages(connection, [pipeline_id])[pipeline_id]


def _to_pipeline(row: sa.RowMapping, stages: list[Stage]) -> Pipeline:
    cancelled = row["cancelled_at"] is not None
    status = status_of(stages, cancelled=cancelled)
    ends = [stage.finished_at for stage in stages if stage.finished_at is not None]
    ended = status in TERMINAL
    return Pipeline(
        id=row["id"],
        tenant_id=row["tenant_id"],
        name=row["name"],
        metadata=row["metadata"],
        status=status,
        requested="cancel" if cancelled and not ended else None,
        stages=tuple(stages),
        created_at=row["created_at"],
        finished_at=max(ends) if ended and ends else None,
    )


def _stages(connection: sa.Connection, ids: Sequence[str]) -> dict[str, list[Stage]]:
    its_job = sa.and_(
        jobs.c.pipeline_id == pipeline_stages.c.pipeline_id, jobs.c.stage == pipeline_stages.c.name
    )
    query = (
        sa.select(
            pipeline_stages,
            jobs.c.id.label("job_id"),
            jobs.c.status,
            jobs.c.adapter_id,
            jobs.c.error.label("job_error"),
            jobs.c.finished_at,
        )
        .select_from(pipeline_stages.outerjoin(jobs, its_job))
        .where(pipeline_stages.c.pipeline_id.in_(ids))
        .order_by(pipeline_stages.c.position)
    )
    named = sa.select(stage_inputs).where(stage_inputs.c.pipeline_id.in_(ids))
    inputs: dict[tuple[str, str], dict[str, str]] = {}
    for row in connection.execute(named):
        inputs.setdefault((row.pipeline_id, row.stage), {})[row.field] = row.source
    found: dict[str, list[Stage]] = {id: [] for id in ids}
    for each in connection.execute(query).mappings():
        place = (each["pipeline_id"], each["name"])
        found[each["pipeline_id"]].append(_to_stage(each, inputs.get(place, {})))
    return found


def _to_stage(row: sa.RowMapping, inputs: dict[str, str]) -> Stage:
    has_job = row["job_id"] is not None
    return Stage(
        name=row["name"],
        spec=JobSpec.model_validate(row["spec"]),
        base_revision=row["base_revision"],
        inputs=inputs,
        state=StageState(row["status"] if has_job else row["state"]),
        job_id=row["job_id"],
        adapter_id=row["adapter_id"],
        error=row["job_error"] if has_job else row["error"],
        finished_at=row["finished_at"] if has_job else row["ended_at"],
    )


def end_stages(
    connection: sa.Connection,
    pipeline_id: str,
    names: Iterable[str],
    state: StageState,
    error: JobError | None,
) -> None:
    """End stages that never had a job."""
    stored = error.model_dump(mode="json") if error else None
    query = pipeline_stages.update().where(_is(pipeline_id, names))
    connection.execute(query.values(state=state, error=stored, ended_at=now()))


def start_stage(connection: sa.Connection, pipeline_id: str, name: str) -> None:
    """From here on the stage is what its job is."""
    query = pipeline_stages.update().where(_is(pipeline_id, [name]))
    connection.execute(query.values(state="started"))


def _is(pipeline_id: str, names: Iterable[str]) -> sa.ColumnElement[bool]:
    return sa.and_(
        pipeline_stages.c.pipeline_id == pipeline_id, pipeline_stages.c.name.in_(list(names))
    )
