"""/v1/models: the operator's base models, and the tenant's own. Any id here is a `model`."""

from collections.abc import Iterator
from pathlib import Path as Folder
from typing import Annotated, Literal

from fastapi import APIRouter, Path

from api import adapters
from api.auth import TenantId
from api.bodies import StrictRoute
from api.calls import in_thread
from api.envelope import Deleted, ListOf, Wire, refusals
from api.errors import Invalid
from api.paging import known
from api.services import FromServices, Services
from api.v1.voices import no_model
from engine.bases import BaseCatalogue, BaseUnusable, context_length
from jobs.errors import NotFound
from jobs.model import Adapter

router = APIRouter(prefix="/v1/models", tags=["openai"], route_class=StrictRoute)

OPERATORS, TENANTS = "luthier", "tenant"
ALL = 1_000_000

# A base may be called `org/name`, which SDKs send as org%2Fname.
ModelId = Annotated[str, Path(examples=["ad_0123456789abcdef01234567"], max_length=512)]


class Model(Wire):
    """OpenAI's fields, and vLLM's `root`, `parent` and `max_model_len`.

    `created` of a base is when its files were written. `parent` is an adapter's base.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["luthier", "tenant"]
    root: str
    parent: str | None
    max_model_len: int | None


@router.get("", responses=refusals())
async def list_models(tenant_id: TenantId, services: FromServices) -> ListOf[Model]:
    """All of them at once: the bases, then the tenant's adapters, newest first."""
    return ListOf(data=await in_thread(lambda: tuple(_all(services, tenant_id))))


@router.get("/{id:path}", responses=refusals(404))
async def get_model(id: ModelId, tenant_id: TenantId, services: FromServices) -> Model:
    """One model, by its name or its id."""
    return await in_thread(_find, services, tenant_id, id)


@router.delete("/{id:path}", responses=refusals(404, 409))
async def delete_model(id: ModelId, tenant_id: TenantId, services: FromServices) -> Deleted:
    """Delete a fine-tuned model for good; refused while a job that has not ended starts from it."""
    if id in services.bases.names:
        text = f"{id} is a base model, which only the operator can take away."
        raise Invalid(text, param="model")
    await in_thread(_delete, services, tenant_id, id)
    return Deleted(id=id, object="model")


def _all(services: Services, tenant_id: str) -> Iterator[Model]:
    bases = services.bases
    for name in bases.names:
        yield _base(bases, name)
    # In one look: between two, the last one that was seen may be deleted.
    for adapter in services.store.adapters.page(tenant_id, limit=ALL).data:
        yield _tuned(bases, adapter)


def _find(services: Services, tenant_id: str, id: str) -> Model:
    if id in services.bases.names:
        return _base(services.bases, id)
    return _tuned(services.bases, _adapter(services, tenant_id, id))


def _delete(services: Services, tenant_id: str, id: str) -> None:
    adapters.delete(services, tenant_id, _adapter(services, tenant_id, id).id)


def _adapter(services: Services, tenant_id: str, id: str) -> Adapter:
    """Raises ModelNotFound."""
    try:
        return services.store.adapters.get(tenant_id, known("model", id))
    except NotFound:
        raise no_model(id, "model") from None


def _base(bases: BaseCatalogue, name: str) -> Model:
    folder = _folder(bases, name)
    created = int((folder / "config.json").stat().st_mtime) if folder else 0
    length = context_length(folder) if folder else None
    return Model(
        id=name, created=created, owned_by=OPERATORS, root=name, parent=None, max_model_len=length
    )


def _tuned(bases: BaseCatalogue, adapter: Adapter) -> Model:
    folder = _folder(bases, adapter.base_model) if adapter.base_model in bases.names else None
    return Model(
        id=adapter.id,
        created=int(adapter.created_at),
        owned_by=TENANTS,
        root=adapter.id,
        parent=adapter.base_model,
        max_model_len=context_length(folder) if folder else None,
    )


def _folder(bases: BaseCatalogue, name: str) -> Folder | None:
    """Where a base's files are, unless it cannot be used right now."""
    try:
        return bases.find(name).path
    except BaseUnusable:
        return None
