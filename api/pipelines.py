"""Pipelines over HTTP: several jobs at once, which start from each other's results."""

from functools import partial
from typing import Annotated, Any, Literal

import structlog
from fastapi import APIRouter, Body

from api.auth import TenantId
from api.bodies import StrictRoute
from api.calls import in_thread, read
from api.envelope import ListOf, Wire, refusals
from api.idempotency import IdempotencyKey, by_key, once
from api.jobs import SMALL_JOB, meaning, served_to_judges
from api.paging import After, Limit, PipelineId
from api.services import FromServices, Services
from jobs.idempotency import Idempotency
from jobs.model import JobError, JobSpec, Status
from jobs.planning import plan
from jobs.stages import Pipeline, PipelineSpec, Stage, StageState

log = structlog.get_logger()
router = APIRouter(prefix="/pipelines", tags=["pipelines"], route_class=StrictRoute)

TWO_STAGES = {"stages": {"basics": SMALL_JOB, "polish": SMALL_JOB | {"init": "@basics"}}}


class StageView(Wire):
    """A job of a pipeline, before there is one and after. `error` also says why it was skipped."""

    state: StageState
    needs: tuple[str, ...]
    job_id: str | None
    adapter_id: str | None
    error: JobError | None
    finished_at: int | None
    spec: JobSpec


class PipelineView(Wire):
    """A pipeline as clients see it, its stages in the order they were posted in.

    `requested` says that a cancel waits for jobs that still run.
    """

    object: Literal["pipeline"] = "pipeline"
    id: str
    status: Status
    requested: Literal["cancel"] | None
    name: str | None
    metadata: dict[str, str]
    stages: dict[str, StageView]
    created_at: int
    finished_at: int | None


def view(pipeline: Pipeline) -> PipelineView:
    return PipelineView(
        id=pipeline.id,
        status=pipeline.status,
        requested=pipeline.requested,
        name=pipeline.name,
        metadata=pipeline.metadata,
        stages={stage.name: _stage(stage) for stage in pipeline.stages},
        created_at=int(pipeline.created_at),
        finished_at=None if pipeline.finished_at is None else int(pipeline.finished_at),
    )


def _stage(stage: Stage) -> StageView:
    return StageView(
        state=stage.state,
        needs=stage.needs,
        job_id=stage.job_id,
        adapter_id=stage.adapter_id,
        error=stage.error,
        finished_at=None if stage.finished_at is None else int(stage.finished_at),
        spec=stage.spec,
    )


@router.post("", status_code=201, responses=refusals(404, 429))
async def submit(
    spec: Annotated[PipelineSpec, Body(examples=[TWO_STAGES])],
    tenant_id: TenantId,
    services: FromServices,
    idempotency_key: IdempotencyKey = None,
) -> PipelineView:
    """Start a pipeline: jobs by name, where `@name` stands for the adapter that a job makes.

    It is checked whole before any of it starts. A stage is queued when all it needs has succeeded.
    """
    served = await served_to_judges(services, spec.stages.values())
    answered = partial(services.store.pipelines.answered, tenant_id)
    make = partial(_make, services, tenant_id, spec, served)
    idempotency = by_key(idempotency_key, _meaning(spec))
    return view(await in_thread(once, idempotency, answered, make))


def _make(
    services: Services,
    tenant_id: str,
    spec: PipelineSpec,
    served: frozenset[str] | None,
    idempotency: Idempotency | None,
) -> Pipeline:
    settings, pipelines = services.settings, services.store.pipelines
    stages = plan(
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
    submitted = pipelines.submit(
        tenant_id, spec, stages, queue=settings.queue, idempotency=idempotency
    )
    if not submitted.replayed:
        for stage in submitted.pipeline.stages:
            if stage.state is StageState.QUEUED:
                log.info("job.queued", job_id=stage.job_id, pipeline_id=submitted.pipeline.id)
                services.wakeups.wake(settings.queue)
    return submitted.pipeline


def _meaning(spec: PipelineSpec) -> dict[str, Any]:
    stages = {name: meaning(stage) for name, stage in spec.stages.items()}
    return spec.model_dump(mode="json", exclude={"stages"}) | {"stages": stages}


@router.get("", responses=refusals(404))
async def list_pipelines(
    tenant_id: TenantId, services: FromServices, after: After, limit: Limit = 20
) -> ListOf[PipelineView]:
    """The tenant's pipelines, newest first."""
    pipelines = services.store.pipelines
    page = await read(services.store, pipelines.page, tenant_id, after=after, limit=limit)
    return ListOf(data=tuple(map(view, page.data)), has_more=page.has_more)


@router.get("/{id}", responses=refusals(404))
async def get_pipeline(id: PipelineId, tenant_id: TenantId, services: FromServices) -> PipelineView:
    """One pipeline: where each of its stages is, and what came out."""
    return view(await read(services.store, services.store.pipelines.get, tenant_id, id))


@router.post("/{id}/cancel", responses=refusals(404, 409))
async def cancel_pipeline(
    id: PipelineId, tenant_id: TenantId, services: FromServices
) -> PipelineView:
    """Stop all of it: at once what waits, within seconds what runs. Results so far stay."""
    return view(await in_thread(services.store.pipelines.cancel, tenant_id, id))
