"""The edge of every request: its id, its log event, its measurements, and the last catch-all."""

import re
import time
import traceback
from collections.abc import Iterator

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import traces
from api.errors import BodyCut, answer
from api.instruments import Instruments
from jobs.model import new_id

log = structlog.get_logger()

GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")
QUIET = frozenset({"/healthz", "/readyz"})  # asked every few seconds for ever
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
CUT = "The body ended before it was complete; send it again."


class AnswerBroken(Exception):
    """Makes the server cut the connection: an answer that has begun cannot become an error."""


class Edge:
    """Outermost: whatever happens inside, the client gets the envelope and a request id."""

    def __init__(self, app: ASGIApp, instruments: Instruments) -> None:
        self._app, self._instruments = app, instruments

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if GIVEN_ID.fullmatch(given) else new_id("req")
        scope.setdefault("state", {})["request_id"] = request_id
        with (
            structlog.contextvars.bound_contextvars(request_id=request_id),
            self._instruments.open(),
            traces.request(scope, request_id),
        ):
            await self._handle(scope, receive, send, request_id)

    async def _handle(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        status, began = 0, time.perf_counter()

        async def labelled(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, labelled)
        except Exception as error:
            if status:
                _record(error)
                raise AnswerBroken(request_id) from None
            response = answer(_translated(error), request_id)
            if response.status_code >= 500:
                _record(error)
            await response(scope, receive, labelled)
        finally:
            self._observe(scope, status, time.perf_counter() - began)

    def _observe(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        # A client may send any word as its method.
        method = scope["method"] if scope["method"] in METHODS else "other"
        traces.answered(method, route, status)
        self._instruments.observe(method, route, status, seconds)
        say = log.debug if route in QUIET and status < 500 else log.info
        say(
            "http.request",
            method=method,
            route=route,
            status=status,
            ms=round(seconds * 1000, 1),
        )


def _translated(error: Exception) -> Exception:
    return BodyCut(CUT) if isinstance(error, ClientDisconnect) else error


def _record(error: Exception) -> None:
    """Log a fault by its classes and places. Its text may quote a client's data: it stays out."""
    log.error(
        "http.fault",
        error=" <- ".join(type(link).__name__ for link in _chain(error)),
        where=[
            f"{frame.filename}:{frame.lineno} {frame.name}"
            for link in _chain(error)
            for frame in traceback.extract_tb(link.__traceback__)[-6:]
        ],
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
