"""/v1/webhook_endpoints: where to hear of jobs' ends, signed as Standard Webhooks has it."""

import time
from typing import Annotated, Literal

from fastapi import APIRouter, Body
from pydantic import Field, StringConstraints

from api.auth import TenantId
from api.bodies import StrictRoute
from api.calls import in_thread, read
from api.envelope import Body as Asked
from api.envelope import ListOf, Wire, refusals
from api.errors import Invalid, WebhookFailed
from api.paging import After, Limit, WebhookId
from api.services import FromServices, Services
from jobs.model import new_id
from jobs.outbox import body_of
from jobs.sending import URL_MAX, AddressRefused, Unreachable, check_url, post
from jobs.signing import hint_of, signed_headers
from jobs.webhooks import TYPES, Endpoint, EventType

router = APIRouter(prefix="/v1", tags=["openai"], route_class=StrictRoute)

SAMPLE_JOB = "job_0123456789abcdef01234567"
SAMPLE = {
    "name": "my service",
    "url": "https://example.com/hooks/luthier",
    "event_types": ["fine_tuning.job.succeeded", "fine_tuning.job.failed"],
}

Name = Annotated[
    str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]*$")
]
Url = Annotated[str, StringConstraints(min_length=1, max_length=URL_MAX)]
EventTypes = Annotated[tuple[EventType, ...], Field(min_length=1, max_length=len(TYPES))]


class CreateBody(Asked):
    """Where to send which events. The URL is https, and leads to a public address."""

    name: Name
    url: Url
    event_types: EventTypes


class UpdateBody(Asked):
    """What changes; what is left out stays."""

    name: Name | None = None
    url: Url | None = None
    event_types: EventTypes | None = None


class RotateBody(Asked):
    keep_old_secret_active_for_24_hours: bool = False


class TestBody(Asked):
    event_type: EventType


class WebhookEndpoint(Wire):
    """Where events go. Of its secret it says only how it ends."""

    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    created_at: int
    updated_at: int
    name: str
    url: str
    event_types: tuple[EventType, ...]
    signing_secret_hint: str


class WebhookEndpointWithSecret(WebhookEndpoint):
    """`signing_secret` is said here, and never again."""

    signing_secret: str


class DeletedWebhookEndpoint(Wire):
    id: str
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: Literal[True] = True


class TestResult(Wire):
    """What the endpoint answered; any status is a result."""

    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    webhook_endpoint_id: str
    event_type: EventType
    status_code: int
    success: Literal[True] = True


def view(endpoint: Endpoint) -> WebhookEndpoint:
    return WebhookEndpoint(
        id=endpoint.id,
        created_at=int(endpoint.created_at),
        updated_at=int(endpoint.updated_at),
        name=endpoint.name,
        url=endpoint.url,
        event_types=endpoint.event_types,
        signing_secret_hint=hint_of(endpoint.secret),
    )


def with_secret(endpoint: Endpoint) -> WebhookEndpointWithSecret:
    return WebhookEndpointWithSecret(**view(endpoint).model_dump(), signing_secret=endpoint.secret)


@router.post("/webhook_endpoints", responses=refusals(409))
async def create_webhook(
    body: Annotated[CreateBody, Body(examples=[SAMPLE])],
    tenant_id: TenantId,
    services: FromServices,
) -> WebhookEndpointWithSecret:
    """Hear of the ends of jobs from now on. The secret is in this answer alone."""
    _check(services, body.url)
    endpoint = await in_thread(
        services.store.webhooks.create, tenant_id, body.name, body.url, _each(body.event_types)
    )
    return with_secret(endpoint)


@router.get("/webhook_endpoints", responses=refusals(404))
async def list_webhooks(
    tenant_id: TenantId, services: FromServices, after: After, limit: Limit = 20
) -> ListOf[WebhookEndpoint]:
    """The tenant's endpoints, newest first."""
    webhooks = services.store.webhooks
    page = await read(services.store, webhooks.page, tenant_id, after=after, limit=limit)
    return ListOf(data=tuple(map(view, page.data)), has_more=page.has_more)


@router.get("/webhook_endpoints/{id}", responses=refusals(404))
async def get_webhook(
    id: WebhookId, tenant_id: TenantId, services: FromServices
) -> WebhookEndpoint:
    """One endpoint."""
    return view(await read(services.store, services.store.webhooks.get, tenant_id, id))


@router.post("/webhook_endpoints/{id}", responses=refusals(404))
async def update_webhook(
    id: WebhookId, body: UpdateBody, tenant_id: TenantId, services: FromServices
) -> WebhookEndpoint:
    """Change an endpoint; what is on its way already goes to the new URL."""
    if body.url is not None:
        _check(services, body.url)
    endpoint = await in_thread(
        services.store.webhooks.update,
        tenant_id,
        id,
        name=body.name,
        url=body.url,
        event_types=None if body.event_types is None else _each(body.event_types),
    )
    return view(endpoint)


@router.delete("/webhook_endpoints/{id}", responses=refusals(404))
async def delete_webhook(
    id: WebhookId, tenant_id: TenantId, services: FromServices
) -> DeletedWebhookEndpoint:
    """Hear no more; what is on its way is not delivered."""
    await in_thread(services.store.webhooks.delete, tenant_id, id)
    return DeletedWebhookEndpoint(id=id)


@router.post("/webhook_endpoints/{id}/rotate_secret", responses=refusals(404))
async def rotate_secret(
    id: WebhookId,
    tenant_id: TenantId,
    services: FromServices,
    body: RotateBody | None = None,
) -> WebhookEndpointWithSecret:
    """A new secret, in this answer alone. The old one may go on signing beside it for a day."""
    keep_old = body is not None and body.keep_old_secret_active_for_24_hours
    endpoint = await in_thread(services.store.webhooks.rotate, tenant_id, id, keep_old=keep_old)
    return with_secret(endpoint)


@router.post("/webhook_endpoints/{id}/test", responses=refusals(404))
async def test_webhook(
    id: WebhookId, body: TestBody, tenant_id: TenantId, services: FromServices
) -> TestResult:
    """Send an event of a job that is not there, once, and say what was answered."""
    endpoint = await in_thread(services.store.webhooks.get, tenant_id, id)
    async with services.testing.of(tenant_id), services.outside:
        status = await in_thread(_try, services, endpoint, body.event_type)
    return TestResult(webhook_endpoint_id=id, event_type=body.event_type, status_code=status)


def _try(services: Services, endpoint: Endpoint, event_type: EventType) -> int:
    event_id, now = new_id("evt"), int(time.time())
    content = body_of(event_id, event_type, now, SAMPLE_JOB)
    headers = signed_headers(event_id, now, content, endpoint.secrets)
    try:
        return post(endpoint.url, content, headers, services.settings.webhook_networks)
    except (AddressRefused, Unreachable) as error:
        raise WebhookFailed(str(error), param="url") from None


@router.get("/webhook_event_types", responses=refusals())
async def list_event_types(tenant_id: TenantId) -> ListOf[EventType]:
    """What there is to hear of."""
    return ListOf(data=tuple(TYPES.values()))


def _check(services: Services, url: str) -> None:
    """Raises Invalid for what can be seen to lead nowhere that is allowed."""
    try:
        check_url(url, services.settings.webhook_networks)
    except AddressRefused as error:
        raise Invalid(str(error), param="url") from None


def _each(types: tuple[EventType, ...]) -> tuple[EventType, ...]:
    return tuple(dict.fromkeys(types))
