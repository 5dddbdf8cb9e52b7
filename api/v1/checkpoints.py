"""/v1/fine_tuning/jobs/{id}/checkpoints: what a job could go on from, the last step first."""

from typing import Literal

from fastapi import APIRouter

from api.auth import TenantId
from api.bodies import StrictRoute
from api.calls import in_thread, read
from api.envelope import ListOf, Wire, refusals
from api.paging import After, JobId, Limit
from api.services import FromServices
from api.v1.events import THEIRS
from api.v1.job import require_training
from jobs.errors import NotFound
from jobs.model import Checkpoint

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["openai"], route_class=StrictRoute)


class CheckpointMetrics(Wire):
    """What was measured at this step, where it was."""

    step: int
    train_loss: float | None = None
    train_mean_token_accuracy: float | None = None
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None
    full_valid_loss: float | None = None
    full_valid_mean_token_accuracy: float | None = None


class JobCheckpoint(Wire):
    """`fine_tuned_model_checkpoint` is the model that it becomes when it is published, by
    `POST /jobs/{id}/checkpoints/{checkpoint_id}/publish`; until then it cannot be asked.
    """

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: CheckpointMetrics


@router.get("/{id}/checkpoints", responses=refusals(404))
async def list_checkpoints(
    id: JobId, tenant_id: TenantId, services: FromServices, after: After, limit: Limit = 10
) -> ListOf[JobCheckpoint]:
    """The last step first."""
    await require_training(services, tenant_id, id)
    found = await read(services.store, services.store.jobs.checkpoints, tenant_id, id)
    if after is not None:
        places = [place for place, one in enumerate(found) if one.id == after]
        if not places:
            raise NotFound("cursor", after)
        found = found[places[0] + 1 :]
    shown = await in_thread(lambda: tuple(view(checkpoint) for checkpoint in found[:limit]))
    return ListOf(data=shown, has_more=len(found) > limit)


def view(checkpoint: Checkpoint) -> JobCheckpoint:
    from jobs.promotion import promoted_id  # with numpy, which is slow to import

    known = {THEIRS[name]: value for name, value in checkpoint.metrics.items() if name in THEIRS}
    return JobCheckpoint(
        id=checkpoint.id,
        created_at=int(checkpoint.created_at),
        fine_tuned_model_checkpoint=promoted_id(checkpoint.id),
        fine_tuning_job_id=checkpoint.job_id,
        step_number=checkpoint.step,
        metrics=CheckpointMetrics(step=checkpoint.step, **known),
    )
