"""GET /audit: who did what to which id, of the tenant's own."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query

from api.auth import TenantId
from api.bodies import StrictRoute
from api.calls import read
from api.envelope import ListOf, Wire, refusals
from api.paging import After, Limit
from api.services import FromServices
from jobs.audit import Deed

router = APIRouter(tags=["operations"], route_class=StrictRoute)


class DeedView(Wire):
    """One line of the audit log, which is only ever added to.

    `actor`: `key` (an API key, by `key_id`), `operator` (the command line) or `service` (a worker).
    """

    object: Literal["audit.deed"] = "audit.deed"
    id: str
    actor: Literal["key", "operator", "service"]
    key_id: str | None
    request_id: str | None
    action: str
    object_id: str
    created_at: float


def view(deed: Deed) -> DeedView:
    return DeedView.model_validate(deed.model_dump(exclude={"tenant_id"}))


@router.get("/audit", responses=refusals(404))
async def list_deeds(
    tenant_id: TenantId,
    services: FromServices,
    after: After,
    object_id: Annotated[str | None, Query(max_length=64, description="only of this id")] = None,
    limit: Limit = 20,
) -> ListOf[DeedView]:
    """What was made, changed and deleted, and by whom, newest first; for keys with scope admin."""
    page = await read(
        services.store,
        services.store.audit.page,
        tenant_id,
        object_id=object_id,
        after=after,
        limit=limit,
    )
    return ListOf(data=tuple(map(view, page.data)), has_more=page.has_more)
