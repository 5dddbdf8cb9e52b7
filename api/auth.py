"""Who asks: an API key in, a tenant out, and whether the key may do this, and now.

A key is looked up for every request and kept nowhere, so one that is revoked is so at once.
"""

from ipaddress import IPv6Address, ip_address, ip_network
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.calls import read
from api.docs import PAGES, STATIC
from api.errors import Forbidden, TooManyRequests, Unauthenticated
from api.rates import Rates
from api.scopes import OPEN, SCOPES, rate_of
from jobs.audit import Actor, acting_as
from jobs.store import Store
from jobs.tenants import Caller

NEEDED = (
    "A valid API key is needed: send 'Authorization: Bearer lk_...'; "
    "`luthier key create` makes one."
)


class Authentication:
    """Finds the caller before anything of the body is read."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        store: Store,
        rates: Rates,
        unverified_per_minute: int,
        public_docs: bool,
    ) -> None:
        self._app, self._store, self._rates = app, store, rates
        self._unverified, self._public_docs = unverified_per_minute, public_docs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        caller = await self._caller(Headers(scope=scope).get("authorization", ""))
        if caller is None:
            await self._refuse(scope)
            return
        state = scope.setdefault("state", {})
        state |= {"caller": caller, "tenant_id": caller.tenant_id, "rates": self._rates}
        with acting_as(Actor("key", caller.key_id, state.get("request_id"))):
            await self._app(scope, receive, send)

    def _is_open(self, path: str) -> bool:
        of_docs = path in PAGES or path.startswith(f"{STATIC}/")
        return path in OPEN or (self._public_docs and of_docs)

    async def _caller(self, authorization: str) -> Caller | None:
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return None
        return await read(self._store, self._store.tenants.authenticate, key.strip())

    async def _refuse(self, scope: Scope) -> None:
        """By address, since there is nobody else to count; valid keys behind it are let through."""
        wait_s = await self._rates.take(f"address:{_address(scope)}", self._unverified)
        if wait_s:
            raise TooManyRequests(
                "Too many requests without a valid API key came from this address; wait.",
                retry_after_s=wait_s,
            )
        raise Unauthenticated(NEEDED)


def _address(scope: Scope) -> str:
    """The client's, or its network where each client has a whole one."""
    host = (scope.get("client") or ("unknown", 0))[0]
    try:
        address = ip_address(host)
    except ValueError:
        return "unknown"
    if isinstance(address, IPv6Address):
        return str(ip_network((address, 64), strict=False))
    return str(address)


async def admit(request: Request) -> None:
    """Whether the caller's key may call this route, and its tenant so often.

    Raises Forbidden and TooManyRequests.
    """
    route = f"{request.method} {request.scope['route'].path_format}"
    needed = SCOPES.get(route)
    if needed == "none":
        return
    caller: Caller = request.state.caller
    if needed is None or needed not in caller.scopes:
        raise Forbidden(
            f"This API key has no scope {needed!r}, which {route} needs; "
            f"`luthier key create --scope {needed}` makes one that has."
        )
    rate, per_minute = rate_of(needed, caller.quotas)
    rates: Rates = request.state.rates
    wait_s = await rates.take(f"{caller.tenant_id}:{rate}", per_minute)
    if wait_s:
        raise TooManyRequests(
            f"This tenant's {rate} are above {per_minute} a minute; wait {wait_s:.1f} s.",
            retry_after_s=wait_s,
        )


async def tenant_of(
    request: Request,
    _: Annotated[object, Security(HTTPBearer(auto_error=False, description=NEEDED))],
) -> str:
    """The tenant whose key came with the request."""
    caller: Caller = request.state.caller
    return caller.tenant_id


async def key_of(request: Request) -> str:
    """The id of the key that came with the request."""
    caller: Caller = request.state.caller
    return caller.key_id


TenantId = Annotated[str, Depends(tenant_of)]
KeyId = Annotated[str, Depends(key_of)]
