"""A request as a span: the first of a trace that goes on with the job that it queues.

A client's own trace is linked to, not joined: who may post jobs may not write into any trace.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from fastapi.telemetry import TelemetryConfig
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanKind
from starlette.datastructures import Headers
from starlette.types import Scope

from jobs.tracing import below, fail, span

# FastAPI's own spans and logs have paths, queries and the texts of exceptions in them.
NO_OTHERS: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}
PROBES = frozenset({"/healthz", "/readyz"})


@contextmanager
def request(scope: Scope, request_id: str) -> Iterator[None]:
    """The request's span; `answered` names it once its route is known."""
    if scope["path"] in PROBES:
        yield
        return
    given = below(Headers(scope=scope).get("traceparent"))
    client = trace.get_current_span(given).get_span_context()
    links = [Link(client)] if client.is_valid else []
    with span(
        "request", parent=Context(), kind=SpanKind.SERVER, links=links, request_id=request_id
    ):
        yield


def answered(method: str, route: str, status: int) -> None:
    """Write the template of the route and the status on the span that is open here."""
    opened = trace.get_current_span()
    opened.update_name(f"{method} {route}")
    opened.set_attribute("http.request.method", method)
    opened.set_attribute("http.route", route)
    opened.set_attribute("http.response.status_code", status)
    if status >= 500:
        fail(opened, str(status))
