"""Checkpoints over HTTP: what a job could go on from, and one of them published as an adapter."""

import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from fastapi import Path as InPath

from api import adapters
from api.auth import TenantId
from api.bodies import StrictRoute
from api.calls import in_thread, read
from api.envelope import ListOf, Wire, refusals
from api.paging import JobId, known
from api.rendering import renderer_of
from api.services import FromServices, Services
from jobs.model import Adapter, Checkpoint

router = APIRouter(prefix="/jobs", tags=["jobs"], route_class=StrictRoute)

CheckpointId = Annotated[str, InPath(examples=["ck_0123456789abcdef01234567"], max_length=512)]


class CheckpointView(Wire):
    """Resumable training state; private to the job."""

    object: Literal["checkpoint"] = "checkpoint"
    id: str
    job: str
    attempt: int
    step: int
    bytes: int
    metrics: dict[str, Any]
    created_at: int


def view(checkpoint: Checkpoint) -> CheckpointView:
    return CheckpointView(
        id=checkpoint.id,
        job=checkpoint.job_id,
        attempt=checkpoint.attempt,
        step=checkpoint.step,
        bytes=sum(file.size_bytes for file in checkpoint.files),
        metrics=checkpoint.metrics,
        created_at=int(checkpoint.created_at),
    )


@router.get("/{id}/checkpoints", responses=refusals(404))
async def list_checkpoints(
    id: JobId, tenant_id: TenantId, services: FromServices
) -> ListOf[CheckpointView]:
    """The checkpoints that the job could go on from, the last step first."""
    store = services.store
    checkpoints = await read(store, store.jobs.checkpoints, tenant_id, id)
    return ListOf(data=tuple(map(view, checkpoints)))


@router.post(
    "/{id}/checkpoints/{checkpoint_id}/publish", status_code=201, responses=refusals(404, 409, 500)
)
async def publish_checkpoint(
    id: JobId, checkpoint_id: CheckpointId, tenant_id: TenantId, services: FromServices
) -> adapters.AdapterView:
    """Make a checkpoint an adapter like any other, whatever became of its job.

    It is checked in full before it exists. The same checkpoint again is the same adapter.
    """
    await read(services.store, services.store.jobs.get, tenant_id, id)
    known("checkpoint", checkpoint_id)
    async with services.slow:
        adapter = await in_thread(_publish, services, tenant_id, id, checkpoint_id)
    return adapters.view(adapter)


def _publish(services: Services, tenant_id: str, job_id: str, checkpoint_id: str) -> Adapter:
    from jobs.promotion import promote, promoted  # with numpy, which is slow to import

    if made := promoted(services.store, tenant_id, job_id, checkpoint_id):
        return made
    job = services.store.jobs.get(tenant_id, job_id)
    checkpoint = services.store.jobs.checkpoint(tenant_id, job_id, checkpoint_id)
    base = services.bases.find(job.spec.base_model, weights=True)
    contract = renderer_of(base).contract.model_dump(mode="json")
    with tempfile.TemporaryDirectory(prefix="luthier-", ignore_cleanup_errors=True) as folder:
        return promote(
            services.store, services.objects, job, checkpoint, base, contract, Path(folder)
        )
