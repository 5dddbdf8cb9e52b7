"""What a job would take, told before it is posted."""

from contextlib import ExitStack
from typing import Annotated, Literal

from fastapi import APIRouter, Body
from pydantic import Field

from api.auth import TenantId
from api.bodies import StrictRoute
from api.calls import in_thread
from api.copies import dataset_copy
from api.envelope import absent, refusals
from api.jobs import SMALL_JOB, served_to_judges
from api.paging import known
from api.rendering import renderer_of
from api.services import FromServices, Services
from engine.estimate.model import Estimate
from engine.spec import Method, Peft
from jobs.admission import admit
from jobs.estimating import estimate_job
from jobs.inputs import inputs_of
from jobs.mixture import datasets_of
from jobs.model import JobSpec, Replay, Weighted

router = APIRouter(prefix="/jobs", tags=["jobs"], route_class=StrictRoute)


class EstimateView(Estimate):
    """An estimate, with the job as it would run: every choice spelled out."""

    object: Literal["job.estimate"] = "job.estimate"
    base_model: str
    dataset: str | None
    mixture: tuple[Weighted, ...] | None
    replay: Replay | None
    validation: str | None = Field(None, exclude_if=absent)
    method: Method
    peft: Peft


@router.post("/estimate", responses=refusals(404))
async def estimate(
    spec: Annotated[JobSpec, Body(examples=[SMALL_JOB])],
    tenant_id: TenantId,
    services: FromServices,
) -> EstimateView:
    """Tokens, steps, memory and time of a job. It is checked as if it were posted; nothing is kept.

    Its rows are rendered as its trainer will do it, which may take a while; of a large dataset, a
    sample of them.
    """
    for dataset_id in datasets_of(spec).values():
        known("dataset", dataset_id)
    for adapter_id in inputs_of(spec).values():
        known("adapter", adapter_id)
    served = await served_to_judges(services, [spec])
    async with services.slow:
        return await in_thread(_estimate, services, tenant_id, spec, served)


def _estimate(
    services: Services, tenant_id: str, spec: JobSpec, served: frozenset[str] | None
) -> EstimateView:
    settings, store = services.settings, services.store
    admitted = admit(
        store,
        services.bases,
        tenant_id,
        spec,
        max_lora_rank=settings.max_lora_rank,
        qlora=settings.can_quantize,
        served=served,
        vllm_rank=settings.vllm_rank,
        placement=settings.placement,
    )
    job = admitted.spec
    with ExitStack() as copies:
        rows = []
        for field, dataset_id in datasets_of(job).items():
            dataset = store.datasets.get(tenant_id, dataset_id)
            rows.append((field, dataset, copies.enter_context(dataset_copy(services, dataset))))
        found = estimate_job(
            store,
            tenant_id,
            job,
            admitted.base,
            rows,
            renderer_of(admitted.base),
            queue=settings.queue,
            device=settings.device,
            threads=settings.threads,
        )
    figures = {name: getattr(found, name) for name in Estimate.model_fields}
    return EstimateView(
        base_model=job.base_model,
        dataset=job.dataset,
        mixture=job.mixture,
        replay=job.replay,
        validation=job.validation,
        method=job.method,
        peft=job.peft,
        **figures,
    )
