"""Merges over HTTP: adapters of one base made into one adapter, or into a model of their own."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Body

from api import jobs
from api.auth import TenantId
from api.bodies import StrictRoute
from api.calls import in_thread
from api.envelope import refusals
from api.idempotency import IdempotencyKey, by_key, once
from api.paging import known
from api.services import FromServices, Services
from jobs.idempotency import Idempotency
from jobs.merging import MergeRequest, admit_merge
from jobs.model import Job

router = APIRouter(prefix="/adapters", tags=["adapters"], route_class=StrictRoute)

TWO_ADAPTERS = {
    "adapters": [
        {"id": "ad_0123456789abcdef01234567", "weight": 0.7},
        {"id": "ad_89abcdef0123456701234567", "weight": 0.3},
    ],
    "combination_type": "cat",
}


@router.post("/merge", status_code=202, responses=refusals(404, 429))
async def merge(
    request: Annotated[MergeRequest, Body(examples=[TWO_ADAPTERS])],
    tenant_id: TenantId,
    services: FromServices,
    idempotency_key: IdempotencyKey = None,
) -> jobs.JobView:
    """Queue a job that merges adapters; its `adapter_id` is the result once it has succeeded.

    Several LoRA adapters of one base become one (`combination_type`), or one becomes a part of the
    base, as a full model (`into_base`). The metrics of the result say what that lost.
    """
    for adapter in request.adapters:
        known("adapter", adapter.id)
    idempotency = by_key(idempotency_key, {"merge": request.model_dump(mode="json")})
    answered = partial(services.store.jobs.answered, tenant_id)
    make = partial(_make, services, tenant_id, request)
    return jobs.view(await in_thread(once, idempotency, answered, make))


def _make(
    services: Services, tenant_id: str, request: MergeRequest, idempotency: Idempotency | None
) -> Job:
    settings = services.settings
    admitted = admit_merge(
        services.store,
        services.bases,
        tenant_id,
        request,
        max_lora_rank=settings.max_lora_rank,
        vllm_rank=settings.vllm_rank,
    )
    return jobs.queued(services, tenant_id, admitted.spec, admitted.base, idempotency)
