"""What the server does for every connection: request ids, body limits, clients that go away."""

import asyncio
import re
from collections.abc import Coroutine
from typing import Any, TypeVar
from uuid import uuid4

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from engine.infer.errors import RequestInvalid

MAX_BODY_BYTES = 4 * 1024 * 1024
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_Result = TypeVar("_Result")


class ClientGone(Exception):
    """The client closed the connection before its answer was ready."""


class RequestIds:
    """Gives every answer an x-request-id: the client's own, or a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        request_id = given.decode() if _REQUEST_ID.fullmatch(given) else f"req_{uuid4().hex[:24]}"
        scope["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        with bound_contextvars(request_id=request_id):
            await self._app(scope, receive, send_with_id)


async def read_body(request: Request) -> bytes:
    """The whole body, up to the limit. Raises RequestInvalid."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise RequestInvalid(
                f"The body is larger than {MAX_BODY_BYTES} bytes; send less.",
                param=None,
                code="body_too_large",
                status=413,
            )
    return bytes(body)


async def while_connected(request: Request, work: Coroutine[Any, Any, _Result]) -> _Result:
    """The result of the work, which is cancelled when the client goes away: ClientGone."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnect(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
