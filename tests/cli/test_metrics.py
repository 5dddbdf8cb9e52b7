"""The metrics port of a role: free, on loopback, and without a key to the API."""

import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter

from cli.failure import CommandFailed
from cli.family import listen, port_of
from cli.metrics import listen_for_metrics, serve_metrics, write_targets
from cli.tracing import start_tracing
from jobs.settings import Settings, as_environment
from tests.servers import free_port


@pytest.fixture
def taken() -> Iterator[socket.socket]:
    bound = listen("127.0.0.1", free_port(3), "--port")
    yield bound
    bound.close()


def test_a_process_takes_the_first_free_port(taken: socket.socket) -> None:
    settings = Settings(metrics_port=port_of(taken))
    with listen_for_metrics(settings) as first, listen_for_metrics(settings) as second:
        assert port_of(taken) < port_of(first) < port_of(second)
        assert first.getsockname()[0] == "127.0.0.1"


def test_a_scrape_is_answered_in_prometheus_format() -> None:
    registry = CollectorRegistry()
    Counter("luthier_things", "Things.", registry=registry).inc(3)
    with listen("127.0.0.1", 0, "--port") as probe:
        port = port_of(probe)
    serve_metrics(Settings(metrics_port=port), registry)
    answer = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False, timeout=60)
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert "luthier_things_total 3.0" in answer.text
    assert "process_resident_memory_bytes" in answer.text
    assert "_created" not in answer.text


def test_the_targets_of_a_machine_are_written_for_prometheus(tmp_path: Path) -> None:
    with listen("0.0.0.0", 0, "--port") as api:
        write_targets(tmp_path, {"api": api})
        (target,) = json.loads((tmp_path / "metrics.json").read_text())
        assert target == {"targets": [f"127.0.0.1:{port_of(api)}"], "labels": {"role": "api"}}


def test_traces_without_what_sends_them_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(CommandFailed, match=r"\.\[tracing\]"):
        start_tracing(Settings(otlp_endpoint="http://127.0.0.1:4318"), "api")
    start_tracing(Settings(), "api")


@pytest.mark.parametrize("name", ["LUTHIER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"])
def test_the_collector_is_named_by_our_variable_or_by_opentelemetrys(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "http://collector:4318")
    settings = Settings()
    assert settings.otlp_endpoint == "http://collector:4318"
    assert as_environment(settings)["LUTHIER_OTLP_ENDPOINT"] == "http://collector:4318"
