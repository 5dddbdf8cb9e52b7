"""Adapters over HTTP: list, show, delete. Archives in and out are in archives.py."""

from typing import Any, Literal

import structlog
from fastapi import APIRouter

from adapters import registry
from adapters.manifest import AdapterKind, FileEntry, Lineage, Manifest
from api.auth import TenantId
from api.bodies import StrictRoute
from api.calls import in_thread, read
from api.envelope import Deleted, ListOf, Wire, refusals
from api.paging import AdapterId, After, Limit
from api.services import FromServices, Services
from jobs.model import Adapter
from storage.objects import StorageError

router = APIRouter(prefix="/adapters", tags=["adapters"], route_class=StrictRoute)
log = structlog.get_logger()


class AdapterView(Wire):
    """A result: what it is, where it comes from, and its files. It never changes."""

    object: Literal["adapter"] = "adapter"
    id: str
    name: str
    kind: AdapterKind
    base_model: str
    base_revision: str
    job_id: str | None
    bytes: int
    method: dict[str, Any] | None
    peft: dict[str, Any]
    metrics: dict[str, Any]
    lineage: Lineage
    files: tuple[FileEntry, ...]
    created_at: int


def view(adapter: Adapter) -> AdapterView:
    manifest = Manifest.model_validate(adapter.manifest)
    return AdapterView(
        id=adapter.id,
        name=adapter.name,
        kind=adapter.kind,
        base_model=adapter.base_model,
        base_revision=manifest.base_revision,
        job_id=adapter.job_id,
        bytes=adapter.size_bytes,
        method=manifest.method,
        peft=manifest.peft,
        metrics=manifest.metrics,
        lineage=manifest.lineage,
        files=manifest.files,
        created_at=int(adapter.created_at),
    )


@router.get("", responses=refusals(404))
async def list_adapters(
    tenant_id: TenantId, services: FromServices, after: After, limit: Limit = 20
) -> ListOf[AdapterView]:
    """The tenant's adapters, newest first."""
    adapters = services.store.adapters
    page = await read(services.store, adapters.page, tenant_id, after=after, limit=limit)
    return ListOf(data=tuple(map(view, page.data)), has_more=page.has_more)


@router.get("/{id}", responses=refusals(404))
async def get_adapter(id: AdapterId, tenant_id: TenantId, services: FromServices) -> AdapterView:
    """One adapter."""
    return view(await read(services.store, services.store.adapters.get, tenant_id, id))


@router.delete("/{id}", responses=refusals(404, 409))
async def delete_adapter(id: AdapterId, tenant_id: TenantId, services: FromServices) -> Deleted:
    """Delete an adapter for good; inference servers stop serving it within seconds.

    Refused while a job that has not ended starts from it.
    """
    await in_thread(delete, services, tenant_id, id)
    return Deleted(id=id, object="adapter")


def delete(services: Services, tenant_id: str, adapter_id: str) -> None:
    """The row decides; bytes that cannot be removed now are only a waste of space."""
    services.store.adapters.delete(tenant_id, adapter_id)
    try:
        registry.remove(services.objects, tenant_id, adapter_id)
    except StorageError as error:
        log.warning("adapter.bytes_left", adapter=adapter_id, error=type(error).__name__)
