"""What operators measure of the API, in Prometheus' text format; one registry an application."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)


class Instruments:
    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self._requests = Counter(
            "luthier_http_requests",
            "Requests by route template, method and status.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "luthier_http_request_seconds",
            "From the request's head to the answer's last byte.",
            ("method", "route"),
            buckets=BUCKETS_S,
            registry=self.registry,
        )
        self._open = Gauge(
            "luthier_http_requests_open",
            "Requests whose answer has not ended, event streams among them.",
            registry=self.registry,
        )
        self._webhooks = Counter(
            "luthier_webhook_tries",
            "Tries to deliver a webhook by outcome, and webhooks that were given up.",
            ("outcome",),
            registry=self.registry,
        )

    def webhook(self, outcome: str) -> None:
        """What became of one try, or that the last one was made."""
        self._webhooks.labels(outcome).inc()

    @contextmanager
    def open(self) -> Iterator[None]:
        with self._open.track_inprogress():
            yield

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)
