"""Who asks: an API key in, a tenant's id out. Only the operations in OPEN need no key."""

from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.calls import read
from api.docs import STATIC
from api.errors import Unauthenticated
from jobs.store import Store

OPEN = frozenset({"/healthz", "/readyz", "/docs", "/openapi.json"})
NEEDED = (
    "A valid API key is needed: send 'Authorization: Bearer lk_...'; "
    "`luthier key create` makes one."
)


def _is_open(path: str) -> bool:
    return path in OPEN or path.startswith(f"{STATIC}/")


class Authentication:
    """Finds the tenant before anything of the body is read."""

    def __init__(self, app: ASGIApp, store: Store) -> None:
        self._app, self._store = app, store

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_open(scope["path"]):
            tenant_id = await self._tenant(Headers(scope=scope).get("authorization", ""))
            scope.setdefault("state", {})["tenant_id"] = tenant_id
        await self._app(scope, receive, send)

    async def _tenant(self, authorization: str) -> str:
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() == "bearer" and key:
            tenants = self._store.tenants
            tenant_id = await read(self._store, tenants.authenticate, key.strip())
            if tenant_id is not None:
                return tenant_id
        raise Unauthenticated(NEEDED)


async def tenant_of(
    request: Request,
    _: Annotated[object, Security(HTTPBearer(auto_error=False, description=NEEDED))],
) -> str:
    """The tenant whose key came with the request."""
    tenant_id: str = request.state.tenant_id
    return tenant_id


TenantId = Annotated[str, Depends(tenant_of)]
