"""What was made from a dataset: jobs that read it, their checkpoints and adapters, and whatever
started from those.
"""

from collections.abc import Iterable

import sqlalchemy as sa

from jobs.audit import note
from jobs.errors import InUse
from jobs.mixture import named_in
from jobs.model import TERMINAL, Record
from jobs.tables import (
    adapters,
    attempts,
    checkpoints,
    events,
    idempotency_keys,
    job_inputs,
    jobs,
    pipeline_stages,
    pipeline_turns,
)


class Derived(Record):
    """Ids by what they are, each in the order in which it was made."""

    jobs: tuple[str, ...]
    checkpoints: tuple[str, ...]
    adapters: tuple[str, ...]


def derived_from(connection: sa.Connection, tenant_id: str, dataset_id: str) -> Derived:
    """Found step by step: the dataset's jobs, their adapters, the jobs that start from those."""
    new = _readers(connection, tenant_id, dataset_id)
    made: dict[str, None] = {}
    weights: dict[str, None] = {}
    while new:
        made |= dict.fromkeys(new)
        grown = [id for id in _adapters_of(connection, new) if id not in weights]
        weights |= dict.fromkeys(grown)
        new = [id for id in _started_from(connection, tenant_id, grown) if id not in made]
    kept = sa.select(checkpoints.c.id).where(checkpoints.c.job_id.in_(made))
    return Derived(
        jobs=tuple(made),
        checkpoints=tuple(connection.scalars(kept.order_by(checkpoints.c.created_at))),
        adapters=tuple(weights),
    )


def delete_derived(connection: sa.Connection, tenant_id: str, derived: Derived) -> None:
    """Remove the rows of all of it; the caller holds the tenant, and removes the bytes afterwards.

    Raises InUse while one of the jobs has not ended.
    """
    live = sa.select(jobs.c.id).where(jobs.c.id.in_(derived.jobs), jobs.c.status.not_in(TERMINAL))
    if (job_id := connection.scalar(live.limit(1))) is not None:
        raise InUse(f"Job {job_id} comes of this dataset and has not ended; cancel it first.")
    _settle_stages(connection, derived.jobs)
    for table in (events, attempts, checkpoints, job_inputs, pipeline_turns):
        connection.execute(table.delete().where(table.c.job_id.in_(derived.jobs)))
    answers = idempotency_keys.c.object_id.in_(derived.jobs)
    connection.execute(
        idempotency_keys.delete().where(idempotency_keys.c.tenant_id == tenant_id, answers)
    )
    connection.execute(jobs.delete().where(jobs.c.id.in_(derived.jobs)))
    connection.execute(adapters.delete().where(adapters.c.id.in_(derived.adapters)))
    for kind, ids in (("job", derived.jobs), ("adapter", derived.adapters)):
        for id in ids:
            note(connection, tenant_id, f"{kind}.delete", id)


def _readers(connection: sa.Connection, tenant_id: str, dataset_id: str) -> list[str]:
    """Jobs whose specs name the dataset, in whichever field."""
    query = sa.select(jobs.c.id, jobs.c.spec).where(
        jobs.c.tenant_id == tenant_id,
        sa.cast(jobs.c.spec, sa.Text).contains(dataset_id, autoescape=True),
    )
    rows = connection.execute(query.order_by(jobs.c.created_at))
    return [row.id for row in rows if dataset_id in named_in(row.spec)]


def _adapters_of(connection: sa.Connection, job_ids: Iterable[str]) -> list[str]:
    query = sa.select(adapters.c.id).where(adapters.c.job_id.in_(list(job_ids)))
    return list(connection.scalars(query.order_by(adapters.c.created_at)))


def _started_from(
    connection: sa.Connection, tenant_id: str, adapter_ids: Iterable[str]
) -> list[str]:
    query = (
        sa.select(jobs.c.id)
        .join(job_inputs, job_inputs.c.job_id == jobs.c.id)
        .where(jobs.c.tenant_id == tenant_id, job_inputs.c.adapter_id.in_(list(adapter_ids)))
        .distinct()
    )
    return list(connection.scalars(query))


def _settle_stages(connection: sa.Connection, job_ids: Iterable[str]) -> None:
    """A stage was what its job is; from now on it keeps what that came to."""
    query = sa.select(jobs).where(jobs.c.id.in_(list(job_ids)), jobs.c.pipeline_id.is_not(None))
    for row in connection.execute(query).mappings().all():
        stage = sa.and_(
            pipeline_stages.c.pipeline_id == row["pipeline_id"],
            pipeline_stages.c.name == row["stage"],
        )
        came_to = {"state": row["status"], "error": row["error"], "ended_at": row["finished_at"]}
        connection.execute(pipeline_stages.update().where(stage).values(**came_to))
