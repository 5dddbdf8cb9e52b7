"""/v1/fine_tuning/jobs/{id}/events: what happened inside a job, newest first."""

import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query

from api.auth import TenantId
from api.bodies import StrictRoute
from api.calls import read
from api.envelope import ListOf, Wire, refusals
from api.paging import JobId, Limit
from api.services import FromServices
from api.v1.job import require_training
from jobs.errors import NotFound
from jobs.model import Event, Level

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["openai"], route_class=StrictRoute)

EVENT = re.compile(r"ftevent-([0-9a-f]{24})-([1-9][0-9]{0,15})")
# What OpenAI calls our metrics; they stand beside them.
THEIRS = {
    "loss": "train_loss",
    "mean_token_accuracy": "train_mean_token_accuracy",
    "eval_loss": "full_valid_loss",
    "eval_mean_token_accuracy": "full_valid_mean_token_accuracy",
}


class JobEvent(Wire):
    """`data` of a `metrics` event has the method's own metrics, and OpenAI's names for some."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Level
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any]


def view(event: Event) -> JobEvent:
    metrics = event.type == "metrics"
    return JobEvent(
        id=f"ftevent-{event.job_id.partition('_')[2]}-{event.seq}",
        created_at=int(event.created_at),
        level=event.level,
        message=event.message,
        type="metrics" if metrics else "message",
        data=named(event.data) if metrics else event.data,
    )


def named(metrics: dict[str, Any]) -> dict[str, Any]:
    """A step's metrics, with OpenAI's names for those that it knows."""
    return metrics | {THEIRS[name]: metrics[name] for name in THEIRS if name in metrics}


@router.get("/{id}/events", responses=refusals(404))
async def list_events(
    id: JobId,
    tenant_id: TenantId,
    services: FromServices,
    after: Annotated[str | None, Query(description="the last id of the page before")] = None,
    limit: Limit = 20,
) -> ListOf[JobEvent]:
    """Newest first. `GET /jobs/{id}/events` has them oldest first, and as they happen."""
    await require_training(services, tenant_id, id)
    store = services.store
    before = None if after is None else _number(id, after)
    events, has_more = await read(
        store, store.jobs.latest_events, tenant_id, id, before=before, limit=limit
    )
    return ListOf(data=tuple(map(view, events)), has_more=has_more)


def _number(job_id: str, event_id: str) -> int:
    """Raises NotFound for what is no event of this job."""
    found = EVENT.fullmatch(event_id)
    if found is None or found[1] != job_id.partition("_")[2]:
        raise NotFound("cursor", event_id)
    return int(found[2])
