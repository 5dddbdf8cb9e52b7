"""Spans, through OpenTelemetry's API: they go nowhere unless a role set up where to (cli/tracing).

A span has a name, ids and numbers. It never has an error's text, which may quote what was sent.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_PROPAGATOR = TraceContextTextMapPropagator()

Value = str | int | float | bool


@contextmanager
def span(
    name: str,
    *,
    parent: Context | None = None,
    kind: SpanKind = SpanKind.INTERNAL,
    links: Sequence[Link] = (),
    **attributes: Value | None,
) -> Iterator[Span]:
    """The block as a span below the one that is open here, or below `parent`.

    What ends the block by an exception marks the span as failed, with the exception's class.
    """
    tracer = trace.get_tracer("luthier")
    with tracer.start_as_current_span(
        name,
        context=parent,
        kind=kind,
        links=links,
        attributes={
            f"luthier.{key}": value for key, value in attributes.items() if value is not None
        },
        record_exception=False,
        set_status_on_exception=False,
    ) as opened:
        try:
            yield opened
        except BaseException as error:
            fail(opened, type(error).__name__)
            raise


def fail(opened: Span, why: str) -> None:
    """`why` is a class or a code, never a text."""
    opened.set_attribute("error.type", why)
    opened.set_status(Status(StatusCode.ERROR))


def below(traceparent: str | None) -> Context:
    """What makes a span the child of another process's; of None, the first of a new trace."""
    return _PROPAGATOR.extract({"traceparent": traceparent} if traceparent else {}, Context())


def traceparent() -> str | None:
    """Of the span that is open here; None where none is."""
    if not trace.get_current_span().get_span_context().is_valid:
        return None
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier.get("traceparent")
