"""GET /models: the base models that this server may train and serve."""

from typing import Literal

from fastapi import APIRouter

from api.auth import TenantId
from api.bodies import StrictRoute
from api.calls import in_thread
from api.envelope import ListOf, Wire, refusals
from api.services import FromServices
from engine.bases import BaseCatalogue, BaseUnusable, context_length

router = APIRouter(tags=["models"], route_class=StrictRoute)


class ModelView(Wire):
    """A base of the operator's list. Without a revision it cannot be used right now."""

    object: Literal["model"] = "model"
    id: str
    revision: str | None
    context_length: int | None


@router.get("/models", responses=refusals())
async def list_models(tenant_id: TenantId, services: FromServices) -> ListOf[ModelView]:
    """The base models by the names that jobs and /generate use."""
    views = [await in_thread(view, services.bases, name) for name in services.bases.names]
    return ListOf(data=tuple(views))


def view(bases: BaseCatalogue, name: str) -> ModelView:
    try:
        base = bases.find(name)
    except BaseUnusable:
        return ModelView(id=name, revision=None, context_length=None)
    return ModelView(id=name, revision=base.revision, context_length=context_length(base.path))
