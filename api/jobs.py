"""Jobs over HTTP: submit, look, ask for a change. What happens inside one is in events.py."""

from collections.abc import Iterable
from functools import partial
from typing import Annotated, Any, Literal

import structlog
from fastapi import APIRouter, Body, Query
from pydantic import Field

from api.auth import TenantId
from api.bodies import StrictRoute
from api.calls import in_thread, read
from api.completions import bases_served
from api.envelope import ListOf, Wire, absent, refusals
from api.idempotency import IdempotencyKey, by_key, once
from api.paging import After, JobId, Limit, known
from api.rendering import warnings_of
from api.services import FromServices, Services
from engine.bases import BaseModel
from engine.estimate.model import Actual, Estimate
from engine.graders import asking
from engine.merging import MergeMethod
from engine.spec import Method, Peft, Resources
from jobs.admission import admit
from jobs.idempotency import Idempotency
from jobs.inputs import grader_of, inputs_of
from jobs.mixture import datasets_of
from jobs.model import Job, JobError, JobSpec, Progress, Replay, Status, Timings, Weighted, Work
from jobs.serving import serving_warnings

log = structlog.get_logger()
router = APIRouter(prefix="/jobs", tags=["jobs"], route_class=StrictRoute)

SMALL_JOB = {
    "base_model": "luthier-tiny",
    "dataset": "ds_0123456789abcdef01234567",
    "method": {"type": "sft", "num_train_epochs": 3, "learning_rate": 0.001},
    "peft": {"type": "lora", "r": 16},
}


class JobView(Wire):
    """A job as clients see it. `requested` says which change waits for the worker.

    `pipeline_id` and `stage` say whose stage it is, where it is one. `estimate` is made when the
    job first runs, `actual` when it has succeeded. A merge (`POST /adapters/merge`) has no dataset,
    no checkpoints and no estimate.
    """

    object: Literal["job"] = "job"
    id: str
    status: Status
    requested: Literal["cancel", "pause"] | None
    base_model: str
    dataset: str | None
    mixture: tuple[Weighted, ...] | None
    replay: Replay | None
    validation: str | None = Field(None, exclude_if=absent)
    method: Method | MergeMethod
    peft: Peft
    init: str | None
    seed: int
    checkpoint_every: int | None
    resources: Resources | None = Field(None, exclude_if=lambda asked: asked in (None, Resources()))
    name: str | None
    metadata: dict[str, str]
    progress: Progress
    timings: Timings
    attempt: int
    error: JobError | None
    adapter_id: str | None
    pipeline_id: str | None
    stage: str | None
    estimate: Estimate | None
    actual: Actual | None
    created_at: int
    started_at: int | None
    finished_at: int | None


def view(job: Job) -> JobView:
    spec = {name: getattr(job.spec, name, None) for name in JobSpec.model_fields}
    return JobView(
        id=job.id,
        status=job.status,
        requested=job.requested,
        progress=job.progress,
        timings=job.timings,
        attempt=job.attempt,
        error=job.error,
        adapter_id=job.adapter_id,
        pipeline_id=job.pipeline_id,
        stage=job.stage,
        estimate=job.estimate,
        actual=job.actual,
        created_at=int(job.created_at),
        started_at=None if job.started_at is None else int(job.started_at),
        finished_at=None if job.finished_at is None else int(job.finished_at),
        **spec,
    )


@router.post("", status_code=201, responses=refusals(404, 429))
async def submit(
    spec: Annotated[JobSpec, Body(examples=[SMALL_JOB])],
    tenant_id: TenantId,
    services: FromServices,
    idempotency_key: IdempotencyKey = None,
) -> JobView:
    """Queue a job. What could not run or be served is refused now, with every reason."""
    for dataset_id in datasets_of(spec).values():
        known("dataset", dataset_id)
    for adapter_id in inputs_of(spec).values():
        known("adapter", adapter_id)
    served = await served_to_judges(services, [spec])
    idempotency = by_key(idempotency_key, meaning(spec))
    return view(await in_thread(submit_spec, services, tenant_id, spec, idempotency, served))


async def served_to_judges(services: Services, specs: Iterable[JobSpec]) -> frozenset[str] | None:
    """The bases that judges can run on; None where no grader asks, or that server does not say."""
    if not any(any(asking(grader_of(spec))) for spec in specs):
        return None
    return await bases_served(services.http)


def submit_spec(
    services: Services,
    tenant_id: str,
    spec: JobSpec,
    idempotency: Idempotency | None,
    served: frozenset[str] | None,
) -> Job:
    """The job of a spec, once. Raises SpecInvalid with every reason against it, and NotFound."""

    def make(idempotency: Idempotency | None) -> Job:
        settings = services.settings
        admitted = admit(
            services.store,
            services.bases,
            tenant_id,
            spec,
            max_lora_rank=settings.max_lora_rank,
            qlora=settings.can_quantize,
            served=served,
            vllm_rank=settings.vllm_rank,
            placement=settings.placement,
        )
        told = warnings_of(admitted.base) + serving_warnings(admitted.spec, settings.vllm_rank)
        return queued(services, tenant_id, admitted.spec, admitted.base, idempotency, warnings=told)

    return once(idempotency, partial(services.store.jobs.answered, tenant_id), make)


def queued(
    services: Services,
    tenant_id: str,
    spec: Work,
    base: BaseModel,
    idempotency: Idempotency | None,
    *,
    warnings: tuple[str, ...] = (),
) -> Job:
    """The job of an admitted spec, in the queue; a worker is told of it once."""
    placement = services.settings.placement
    asked = spec.resources if isinstance(spec, JobSpec) else Resources()
    queue = placement.queue_for(asked) or placement.queue
    submitted = services.store.jobs.submit(
        tenant_id,
        spec,
        base_revision=base.revision,
        queue=queue,
        idempotency=idempotency,
        warnings=warnings,
    )
    if not submitted.replayed:
        log.info("job.queued", job_id=submitted.job.id, queue=queue, method=spec.method.type)
        services.wakeups.wake(queue)
    return submitted.job


def meaning(spec: JobSpec) -> dict[str, Any]:
    """A job as JSON. What it leaves of `peft` to the adapter that it goes on with is left out."""
    whole = spec.model_dump(mode="json")
    if spec.init is not None:
        whole["peft"] = spec.model_dump(mode="json", exclude_unset=True).get("peft")
    return whole


@router.get("", responses=refusals(404))
async def list_jobs(
    tenant_id: TenantId,
    services: FromServices,
    after: After,
    status: Annotated[Status | None, Query(description="only jobs in this state")] = None,
    limit: Limit = 20,
) -> ListOf[JobView]:
    """The tenant's jobs, newest first."""
    board = services.store.jobs
    page = await read(
        services.store, board.page, tenant_id, status=status, after=after, limit=limit
    )
    return ListOf(data=tuple(map(view, page.data)), has_more=page.has_more)


@router.get("/{id}", responses=refusals(404))
async def get_job(id: JobId, tenant_id: TenantId, services: FromServices) -> JobView:
    """One job: its status, how far it is, and the adapter that came out."""
    return view(await read(services.store, services.store.jobs.get, tenant_id, id))


@router.post("/{id}/cancel", responses=refusals(404, 409))
async def cancel_job(id: JobId, tenant_id: TenantId, services: FromServices) -> JobView:
    """Stop a job: at once while it waits, within seconds while it runs."""
    return view(await in_thread(services.store.jobs.cancel, tenant_id, id))


@router.post("/{id}/pause", responses=refusals(404, 409))
async def pause_job(id: JobId, tenant_id: TenantId, services: FromServices) -> JobView:
    """Put a job aside, with a checkpoint where it has begun."""
    return view(await in_thread(services.store.jobs.pause, tenant_id, id))


@router.post("/{id}/resume", responses=refusals(404, 409))
async def resume_job(id: JobId, tenant_id: TenantId, services: FromServices) -> JobView:
    """Queue a paused job again; it goes on from its last checkpoint."""
    return view(await in_thread(resume, services, tenant_id, id))


def resume(services: Services, tenant_id: str, job_id: str) -> Job:
    """Queue a paused job again, and wake a worker for it. Raises NotFound and Conflict."""
    job = services.store.jobs.resume(tenant_id, job_id)
    services.wakeups.wake(services.settings.queue)
    return job
