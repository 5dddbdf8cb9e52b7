"""Where a role's traces go: to a collector by OTLP over HTTP, or, as it is by default, nowhere."""

from typing import TYPE_CHECKING

from cli.failure import CommandFailed

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from jobs.settings import Settings

TIMEOUT_S = 5  # a collector that is away must not hold up the end of a process


def start_tracing(settings: "Settings", role: str) -> None:
    """Send spans to `otlp_endpoint`, if there is one; what is left is sent when the process ends.

    OpenTelemetry reads the rest of its OTEL_... variables (headers, sampler, certificates) itself.
    """
    if not settings.otlp_endpoint:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise CommandFailed(
            "LUTHIER_OTLP_ENDPOINT is set, but what sends traces is not installed; "
            "run `pip install '.[tracing]'` in its checkout, or unset it."
        ) from error
    from opentelemetry import trace

    provider = TracerProvider(resource=Resource.create({"service.name": f"luthier-{role}"}))
    endpoint = settings.otlp_endpoint.rstrip("/") + "/v1/traces"
    exporter = OTLPSpanExporter(endpoint=endpoint, timeout=TIMEOUT_S)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


class Continued:
    """The requests of an application that only our own API calls, in the traces that it names."""

    def __init__(self, app: "ASGIApp") -> None:
        self._app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        from opentelemetry.trace import SpanKind

        from jobs.tracing import below, span

        given = dict(scope.get("headers", ())).get(b"traceparent")
        if scope["type"] != "http" or given is None:
            await self._app(scope, receive, send)
            return
        with span("inference", parent=below(given.decode("latin-1")), kind=SpanKind.SERVER) as own:
            try:
                await self._app(scope, receive, send)
            finally:
                route = getattr(scope.get("route"), "path", "unmatched")
                own.update_name(f"inference {route}")
