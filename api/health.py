"""What operators ask: is the process up, are its parts, and what does it measure."""

import asyncio
from collections.abc import Awaitable
from typing import Literal, TypeVar

import httpx
from fastapi import APIRouter, Response

from api.auth import TenantId
from api.bodies import StrictRoute
from api.calls import in_thread
from api.envelope import Wire, open_refusals, refusals
from api.services import FromServices, Services
from jobs.errors import JobsError
from storage.objects import StorageError

router = APIRouter(tags=["operations"], route_class=StrictRoute)

T = TypeVar("T")

CHECK_S = 2.0
DOWN = (JobsError, StorageError, httpx.HTTPError, OSError)  # a timeout is an OSError


class Health(Wire):
    status: Literal["ok"] = "ok"


class Readiness(Wire):
    """`ready`; `degraded`: jobs are accepted, but wait or cannot be tried out; `unavailable`."""

    status: Literal["ready", "degraded", "unavailable"]
    database: Literal["ok", "unreachable", "not_migrated"]
    storage: Literal["ok", "unreachable"]
    broker: Literal["ok", "unreachable", "embedded"]
    inference: Literal["ok", "unreachable"]


@router.get("/healthz", responses=open_refusals())
async def healthz() -> Health:
    """Whether this process answers; nothing else is asked."""
    return Health()


@router.get(
    "/readyz",
    responses=open_refusals() | {503: {"model": Readiness, "description": "Not ready"}},
)
async def readyz(services: FromServices, response: Response) -> Readiness:
    """Whether the parts that this process needs answer, and how the others are."""
    database, storage, broker, inference = await asyncio.gather(
        _database(services), _storage(services), _broker(services), _inference(services)
    )
    status: Literal["ready", "degraded", "unavailable"] = "ready"
    if "unreachable" in (broker, inference):
        status = "degraded"
    if database != "ok" or storage != "ok":
        status = "unavailable"
        response.status_code = 503
    return Readiness(
        status=status, database=database, storage=storage, broker=broker, inference=inference
    )


@router.get("/metrics", response_class=Response, responses=refusals())
async def metrics(tenant_id: TenantId, services: FromServices) -> Response:
    """Requests and their times for Prometheus; any API key may read it."""
    text = services.instruments.exposition()
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


async def _within(answer: Awaitable[T]) -> T | None:
    """None where a part is down or took too long; what it says then is not for clients."""
    try:
        async with asyncio.timeout(CHECK_S):
            return await answer
    except DOWN:
        return None


async def _database(services: Services) -> Literal["ok", "unreachable", "not_migrated"]:
    current = await _within(in_thread(services.store.database.current))
    if current is None:
        return "unreachable"
    return "ok" if current else "not_migrated"


async def _storage(services: Services) -> Literal["ok", "unreachable"]:
    async def ping() -> bool:
        await in_thread(services.objects.ping)
        return True

    return "ok" if await _within(ping()) else "unreachable"


async def _broker(services: Services) -> Literal["ok", "unreachable", "embedded"]:
    if services.settings.embedded:
        return "embedded"
    waiting = await _within(in_thread(services.wakeups.waiting, services.settings.queue))
    return "unreachable" if waiting is None else "ok"


async def _inference(services: Services) -> Literal["ok", "unreachable"]:
    found: httpx.Response | None = await _within(services.http.get("/health"))
    return "ok" if found is not None and found.is_success else "unreachable"
