"""What happens inside a job: its events as a page or a stream, its metrics."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import StreamingResponse

from api.auth import KeyId, TenantId
from api.bodies import StrictRoute
from api.calls import read
from api.envelope import ListOf, Wire, json_answer, refusals
from api.paging import JobId
from api.services import FromServices
from jobs.model import TERMINAL, Event, Level
from jobs.store import Store

router = APIRouter(prefix="/jobs", tags=["jobs"], route_class=StrictRoute)

POLL_S = 0.2
HEARTBEAT_S = 15.0
REVOKED_S = 0.5  # how long a stream outlives its key, at most
MAX_SEQ = 2**53

Seq = Annotated[int, Query(ge=0, le=MAX_SEQ, description="events numbered above this")]


class EventView(Wire):
    """One line of a job's record; `seq` counts from 1 without gaps."""

    object: Literal["job.event"] = "job.event"
    seq: int
    job: str
    attempt: int
    created_at: int
    level: Level
    type: Literal["state", "metrics", "message", "checkpoint"]
    message: str
    data: dict[str, Any]


def view(event: Event) -> EventView:
    return EventView(
        seq=event.seq,
        job=event.job_id,
        attempt=event.attempt,
        created_at=int(event.created_at),
        level=event.level,
        type=event.type,
        message=event.message,
        data=event.data,
    )


@router.get(
    "/{id}/events",
    response_model=ListOf[EventView],
    responses=refusals(404)
    | {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def list_events(
    id: JobId,
    tenant_id: TenantId,
    key_id: KeyId,
    services: FromServices,
    after: Seq = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    accept: Annotated[str, Header(include_in_schema=False)] = "",
    last_event_id: Annotated[int | None, Header(ge=0, le=MAX_SEQ)] = None,
) -> Response:
    """Events, oldest first. With `Accept: text/event-stream`, all of them as they happen.

    The stream ends after the job's last event. A client that was cut off sends `Last-Event-ID`.
    """
    store = services.store
    if "text/event-stream" in accept:
        await read(store, store.jobs.get, tenant_id, id)  # an unknown job is a 404, not a stream
        frames = follow(store, tenant_id, id, last_event_id or after, key_id)
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(frames, media_type="text/event-stream", headers=headers)
    events, has_more = await read(store, store.jobs.events, tenant_id, id, after=after, limit=limit)
    page: ListOf[EventView] = ListOf(data=tuple(map(view, events)), has_more=has_more)
    return json_answer(page)


async def follow(
    store: Store, tenant_id: str, job_id: str, after: int, key_id: str
) -> AsyncIterator[bytes]:
    """A job's events as server-sent ones, until it has ended and all were sent, or until the key
    is revoked.
    """
    spoke_at = checked_at = time.monotonic()
    while True:
        # The job first: once it has ended, the events read next are all there will be.
        job = await read(store, store.jobs.get, tenant_id, job_id)
        events, has_more = await read(store, store.jobs.events, tenant_id, job_id, after=after)
        for event in events:
            after = event.seq
            yield frame(event)
        if has_more:
            continue
        if job.status in TERMINAL:
            return
        if time.monotonic() - checked_at >= REVOKED_S:
            checked_at = time.monotonic()
            if not await read(store, store.tenants.is_valid, key_id):
                return
        if events:
            spoke_at = time.monotonic()
        elif time.monotonic() - spoke_at >= HEARTBEAT_S:
            spoke_at = time.monotonic()
            yield b": still here\n\n"
        await asyncio.sleep(POLL_S)


def frame(event: Event) -> bytes:
    data = view(event).model_dump_json()
    return f"id: {event.seq}\nevent: {event.type}\ndata: {data}\n\n".encode()


@router.get("/{id}/metrics", responses=refusals(404))
async def list_metrics(id: JobId, tenant_id: TenantId, services: FromServices) -> ListOf[EventView]:
    """The metrics of every step, oldest first; of a step that ran twice, those that count."""
    store = services.store
    events = await read(store, store.jobs.metrics, tenant_id, id)
    return ListOf(data=tuple(map(view, events)))
