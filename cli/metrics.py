"""The /metrics of a role, on a port of its own: who may scrape it is not who may call the API."""

import json
import socket
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

from cli.failure import CommandFailed
from cli.family import adopt, listen, port_of

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from jobs.settings import Settings

TARGETS = "metrics.json"
TRIES = 100  # ports from the first one on, for the processes of one machine


def listen_for_metrics(settings: "Settings") -> socket.socket:
    """The first free port from `metrics_port` on."""
    host, first = settings.metrics_host, settings.metrics_port
    if first == 0:
        return listen(host, 0, "--metrics-port")
    for port in range(first, first + TRIES - 1):
        try:
            return listen(host, port, "--metrics-port")
        except CommandFailed:
            continue
    return listen(host, first + TRIES - 1, "--metrics-port")


def serve_metrics(
    settings: "Settings", registry: "CollectorRegistry", fd: int | None = None
) -> None:
    """Answer scrapes from threads of their own, until the process ends."""
    import structlog
    from prometheus_client import GCCollector, MetricsHandler, PlatformCollector, ProcessCollector
    from prometheus_client import disable_created_metrics as leave_out_creation_times

    leave_out_creation_times()  # type: ignore[no-untyped-call]  # prometheus_client has no types
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    bound = listen_for_metrics(settings) if fd is None else adopt(fd)
    address = bound.getsockname()[:2]
    server = ThreadingHTTPServer(address, MetricsHandler.factory(registry), bind_and_activate=False)
    server.socket.close()
    server.socket = bound
    threading.Thread(target=server.serve_forever, daemon=True, name="metrics").start()
    url = f"http://{address[0]}:{address[1]}/metrics"
    structlog.get_logger().info("metrics.listening", url=url)


def write_targets(data_dir: Path, bound: dict[str, socket.socket]) -> None:
    """Where each role of this machine is scraped, for Prometheus' file_sd_configs."""
    targets = [
        {"targets": [_address(each)], "labels": {"role": role}} for role, each in bound.items()
    ]
    draft = data_dir / f".{TARGETS}"
    draft.write_text(json.dumps(targets, indent=2) + "\n")
    draft.replace(data_dir / TARGETS)


def _address(bound: socket.socket) -> str:
    host = bound.getsockname()[0]
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    port = port_of(bound)
    return f"[{reachable}]:{port}" if ":" in reachable else f"{reachable}:{port}"
