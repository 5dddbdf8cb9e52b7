"""A job's way into the table, in the caller's transaction: its inputs, its row."""

from collections.abc import Sequence
from typing import NamedTuple

import sqlalchemy as sa

from jobs.adapters import find_adapter
from jobs.audit import note
from jobs.datasets import find_dataset
from jobs.events import append_events
from jobs.inputs import inputs_of
from jobs.mixture import datasets_of
from jobs.model import JobSpec, NewEvent, Status, Work, new_id
from jobs.origin import Origin, here
from jobs.tables import job_inputs, jobs, now


class Place(NamedTuple):
    """Where in a pipeline a job stands."""

    pipeline_id: str
    stage: str


def insert_job(
    connection: sa.Connection,
    tenant_id: str,
    spec: Work,
    *,
    base_revision: str,
    queue: str,
    priority: int = 0,
    place: Place | None = None,
    warnings: Sequence[str] = (),
    origin: Origin | None = None,
) -> str:
    """Queue a job; its id. It comes from `origin`, or from the request that is under way here.

    Raises NotFound for its datasets and for the adapters it starts from.
    """
    dataset_ids = list(datasets_of(spec).values()) if isinstance(spec, JobSpec) else []
    for dataset_id in dataset_ids:
        find_dataset(connection, tenant_id, dataset_id, lock=True)
    for adapter_id in inputs_of(spec).values():
        find_adapter(connection, tenant_id, adapter_id, lock=True)
    job_id = new_id("job")
    values = {
        "id": job_id,
        "tenant_id": tenant_id,
        "status": Status.QUEUED,
        "queue": queue,
        "priority": priority,
        "spec": spec.model_dump(mode="json"),
        "dataset_id": next(iter(dataset_ids), None),
        "base_revision": base_revision,
        "pipeline_id": place.pipeline_id if place else None,
        "stage": place.stage if place else None,
        "attempt": 0,
        "losses": 0,
        "event_seq": 0,
        "progress": {},
        "created_at": now(),
    }
    connection.execute(jobs.insert().values(values | (origin or here()).model_dump()))
    for field, adapter_id in inputs_of(spec).items():
        named = {"job_id": job_id, "field": field, "adapter_id": adapter_id}
        connection.execute(job_inputs.insert().values(named))
    queued = NewEvent(type="state", message="queued", data={"status": Status.QUEUED})
    told = [NewEvent(type="message", level="warn", message=message) for message in warnings]
    append_events(connection, job_id, 0, [queued, *told])
    note(connection, tenant_id, "job.create", job_id)
    return job_id
