"""Request bodies: how large and how slow they may be, and JSON read strictly."""

import asyncio
import json
import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.auth import admit
from api.errors import BodyTooLarge, BodyTooSlow, BodyUnreadable, MediaTypeUnsupported

JSON_BYTES = 1 << 20
PATIENCE_S = 30.0  # for a whole small body, and for the next bytes of an upload
STREAMED = frozenset({("POST", "/datasets"), ("POST", "/adapters/import"), ("POST", "/v1/files")})
PART = re.compile(r"/v1/uploads/[^/]+/parts")
PART_BYTES = 64 << 20  # of an upload, as OpenAI has it
FORM_BYTES = 64 << 10  # of a form around a part


class BodyLimits:
    """Caps every body: small ones are read whole before the application sees them."""

    def __init__(self, app: ASGIApp, *, upload_bytes: int, patience_s: float = PATIENCE_S) -> None:
        self._app, self._upload_bytes, self._patience_s = app, upload_bytes, patience_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most = self._most_streamed(scope["method"], scope["path"])
        streamed, limit = most > 0, most or JSON_BYTES
        _check_headers(Headers(scope=scope), limit)
        body = _Body(receive, limit, self._patience_s)
        if streamed:
            await self._app(scope, body.next, send)
        else:
            await self._app(scope, replay(await body.whole(), receive), send)

    def _most_streamed(self, method: str, path: str) -> int:
        """How long a body may be that its route reads as it comes; 0: it is read whole."""
        if (method, path) in STREAMED:
            return self._upload_bytes
        if method == "POST" and PART.fullmatch(path):
            return min(self._upload_bytes, PART_BYTES) + FORM_BYTES
        return 0


class _Body:
    """A body's messages, counted and timed."""

    def __init__(self, receive: Receive, limit: int, patience_s: float) -> None:
        self._receive, self._limit, self._patience_s = receive, limit, patience_s
        self._seen, self._ended = 0, False

    async def next(self) -> Message:
        """The next message; after the last, whatever the server has to say."""
        return await self._receive() if self._ended else await self._take(self._patience_s)

    async def whole(self) -> Message:
        """The body as one message, or the disconnect that came instead."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._patience_s
        pieces = []
        while not self._ended:
            message = await self._take(deadline - clock())
            if message["type"] == "http.disconnect":
                return message
            pieces.append(message.get("body", b""))
        return {"type": "http.request", "body": b"".join(pieces), "more_body": False}

    async def _take(self, timeout_s: float) -> Message:
        try:
            async with asyncio.timeout(timeout_s):
                message = await self._receive()
        except TimeoutError:
            raise BodyTooSlow(f"The body did not come within {self._patience_s:.0f} s.") from None
        self._seen += len(message.get("body", b""))
        self._ended = not message.get("more_body", False)
        if self._seen > self._limit:
            raise _too_large(self._limit)
        return message


def replay(first: Message, receive: Receive) -> Receive:
    """A `receive` that gives `first` before what comes after it."""
    waiting = [first]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed


def _check_headers(headers: Headers, limit: int) -> None:
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise MediaTypeUnsupported(
            f"Content-Encoding {encoding!r} is not read here; send the body uncompressed."
        )
    length = headers.get("content-length", "0")
    if not length.isascii() or not length.isdigit():
        raise BodyUnreadable("Content-Length is not a number.")
    if len(length) > 18 or int(length) > limit:
        raise _too_large(limit)


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is above {limit:,} bytes, the limit here; send less at once.")


class StrictRequest(Request):
    """JSON that other parsers would agree on: UTF-8, finite numbers, no lone surrogates."""

    async def json(self) -> Any:
        body = await self.body()
        try:
            value = from_json(body, allow_inf_nan=False)
            json.dumps(value, allow_nan=False)  # 1e999 reads as infinity
        except (ValueError, RecursionError) as error:
            raise json.JSONDecodeError(str(error), "", 0) from None
        return value


class StrictRoute(APIRoute):
    """A route for callers whose keys may use it, whose JSON bodies are StrictRequest's."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            await admit(request)
            return await handle(StrictRequest(request.scope, request.receive))

        return strict
