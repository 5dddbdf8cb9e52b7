"""What operators measure of the API, in Prometheus' text format; one registry an application."""

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)


class Instruments:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
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

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def exposition(self) -> bytes:
        return generate_latest(self.registry)
