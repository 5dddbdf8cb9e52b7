"""`luthier serve` with everything that watches it: S3 whose secret must not show, a collector of
traces, a Prometheus, and a client that plants texts which no operator may read.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests import servers
from tests.observability.collector import Collector, collecting
from tests.servers import S3Server
from tests.workers import REPO, conversations

OBSERVABILITY = REPO / "k8s" / "observability"
CANARY = "zqxcanary"  # in rows, prompts, names, paths and keys that are none
SCRAPE = "1s"


@dataclass
class Watched:
    """A service that has trained two small jobs and generated, and what is known of it."""

    client: httpx.Client
    data_dir: Path
    collector: Collector
    secrets: dict[str, str]
    prometheus_url: str
    said: Path
    jobs: tuple[dict[str, Any], ...] = ()
    request_id: str = ""
    client_trace: str = ""

    @property
    def targets(self) -> dict[str, str]:
        """The URL of each role's metrics."""
        found = json.loads((self.data_dir / "metrics.json").read_text())
        return {one["labels"]["role"]: f"http://{one['targets'][0]}/metrics" for one in found}

    def scraped(self, role: str) -> str:
        return httpx.get(self.targets[role], trust_env=False, timeout=60).raise_for_status().text

    def lines(self, role: str) -> list[dict[str, Any]]:
        """The events of a role's log."""
        text = (self.data_dir / "logs" / f"{role}.log").read_text()
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    def query(self, promql: str) -> list[dict[str, Any]]:
        url = f"{self.prometheus_url}/api/v1/query"
        answer = httpx.get(url, params={"query": promql}, trust_env=False, timeout=60)
        assert answer.status_code == 200, (promql, answer.text)
        found: list[dict[str, Any]] = answer.json()["data"]["result"]
        return found


@contextmanager
def watched(base: Path, folder: Path, s3: S3Server) -> Iterator[Watched]:
    with ExitStack() as stack:
        endpoint, collector = stack.enter_context(collecting())
        data_dir, said = folder / "data", folder / "said"
        hidden = {
            "s3 secret": s3.secret_key,
            "s3 access key": s3.access_key,
            "pepper": secrets.token_hex(16),
        }
        environment = {
            **os.environ,  # noqa: TID251  # the service needs the test's own
            "LUTHIER_BASE_MODELS": json.dumps({"tiny": str(base)}),
            "LUTHIER_TENANT_CLASSES": json.dumps({"default": "gold"}),
            "LUTHIER_STORAGE_URL": f"s3://{s3.bucket}/watched",
            "LUTHIER_S3_ENDPOINT_URL": s3.endpoint_url,
            "LUTHIER_S3_ACCESS_KEY": s3.access_key,
            "LUTHIER_S3_SECRET_KEY": s3.secret_key,
            "LUTHIER_PEPPER": hidden["pepper"],
            "LUTHIER_OTLP_ENDPOINT": endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "200",
        }
        url = stack.enter_context(_serving(data_dir, said, environment))
        key = (data_dir / "key").read_text().strip()
        hidden["api key"] = key.removeprefix("lk_")
        headers = {"authorization": f"Bearer {key}"}
        client = stack.enter_context(httpx.Client(base_url=url, headers=headers, timeout=60))
        prometheus = stack.enter_context(servers.prometheus(_configuration(data_dir)))
        yield Watched(client, data_dir, collector, hidden, prometheus, said)


@contextmanager
def _serving(data_dir: Path, said: Path, environment: dict[str, str]) -> Iterator[str]:
    ports = ["--port=0", "--inference-port=0", "--metrics-port=0", f"--data-dir={data_dir}"]
    with said.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", "serve", "--verbose", *ports],
            cwd=REPO,
            env=environment,
            stdout=output,
            stderr=output,
        )
    try:
        yield _until(lambda: _announced(data_dir), process, said)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=120)


def _announced(data_dir: Path) -> str | None:
    try:
        url: str | None = json.loads((data_dir / "serve.json").read_text()).get("url")
    except (OSError, ValueError):
        return None
    return url


def _until(found: Callable[[], str | None], process: "subprocess.Popen[bytes]", said: Path) -> str:
    deadline = time.monotonic() + 120
    while not (value := found()):
        assert process.poll() is None, said.read_text()
        assert time.monotonic() < deadline, said.read_text()
        time.sleep(0.1)
    return value


def _configuration(data_dir: Path) -> dict[str, str]:
    """The sample of the repository, scraping often, with the targets that serve wrote down."""
    config = yaml.safe_load((OBSERVABILITY / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": SCRAPE, "evaluation_interval": SCRAPE}
    config["scrape_configs"][0]["file_sd_configs"] = [{"files": ["metrics.json"]}]
    return {
        "prometheus.yml": yaml.safe_dump(config),
        "rules.yaml": (OBSERVABILITY / "rules.yaml").read_text(),
        "metrics.json": (data_dir / "metrics.json").read_text(),
    }


def use(service: Watched) -> None:
    """What a client does, with the canary wherever a text of its own may stand."""
    rows = conversations(8)
    for row in rows:
        row["messages"][0]["content"] += f" {CANARY}"
    text = "\n".join(map(json.dumps, rows))
    dataset = _posted(service.client, "/datasets", text, "application/jsonl", name=f"{CANARY} rows")
    service.client_trace = secrets.token_hex(16)
    service.request_id = f"req_{secrets.token_hex(8)}"
    headers = {
        "x-request-id": service.request_id,
        "traceparent": f"00-{service.client_trace}-{secrets.token_hex(8)}-01",
    }
    first = _trained(service.client, dataset["id"], headers)
    _generate(service.client, first["adapter_id"])
    # Counters are known to Prometheus before they move again.
    _wait_for(service, 1, "luthier_attempt_first_step_seconds_count")
    _wait_for(service, 2, 'luthier_inference_requests_total{outcome="ok"}')
    second = _trained(service.client, dataset["id"], {})
    _generate(service.client, second["adapter_id"])
    service.jobs = (first, second)
    misuse(service.client)
    _wait_for(service, 2, "luthier_attempt_first_step_seconds_count")
    _wait_for(service, 2, 'luthier_attempts_ended_total{outcome="succeeded"}')
    _wait_for(service, 4, 'luthier_inference_requests_total{outcome="ok"}')
    _wait_for(service, 1, 'luthier_http_requests_total{method="other"}')
    _wait_for(service, 2, 'luthier:jobs:max{status="succeeded"}')  # and the rules have seen it


def _wait_for(service: Watched, count: float, promql: str) -> None:
    """Until Prometheus knows of so many."""
    deadline = time.monotonic() + 60
    while sum(float(one["value"][1]) for one in service.query(promql)) != count:
        assert time.monotonic() < deadline, (promql, service.query(promql))
        time.sleep(0.2)


def misuse(client: httpx.Client) -> None:
    """Requests that are refused, each with the canary in it."""
    wrong = {"authorization": f"Bearer lk_{CANARY}"}
    statuses = [
        client.get("/jobs", headers=wrong).status_code,
        client.get(f"/{CANARY}").status_code,
        client.get(f"/jobs/{CANARY}?after={CANARY}").status_code,
        client.request(CANARY.upper(), "/jobs").status_code,
        client.post("/jobs", content=f'{{"{CANARY}').status_code,
        client.post("/jobs", json={CANARY: CANARY, "base_model": CANARY}).status_code,
        client.post("/generate", json={"prompt": CANARY, "adapter_id": CANARY}).status_code,
        client.post(
            "/datasets",
            content=json.dumps({"messages": [{"role": CANARY, "content": CANARY}]}),
            headers={"content-type": "application/jsonl"},
        ).status_code,
    ]
    assert all(400 <= status < 500 for status in statuses), statuses


def _posted(
    client: httpx.Client, path: str, content: str, kind: str, **params: str
) -> dict[str, Any]:
    answer = client.post(path, params=params, content=content, headers={"content-type": kind})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def _trained(client: httpx.Client, dataset_id: str, headers: dict[str, str]) -> dict[str, Any]:
    body = {
        "base_model": "tiny",
        "dataset": dataset_id,
        "method": {"type": "sft", "num_train_epochs": 3, "learning_rate": 5e-3},
        "peft": {"type": "lora", "r": 8},
        "checkpoint_every": 1,
        "name": CANARY,
        "metadata": {CANARY: CANARY},
    }
    headers = headers | {"idempotency-key": secrets.token_hex(8)}
    answer = client.post("/jobs", json=body, headers=headers)
    assert answer.status_code == 201, answer.text
    deadline = time.monotonic() + 120
    while (job := client.get(f"/jobs/{answer.json()['id']}").json())["status"] != "succeeded":
        assert job["status"] in ("queued", "running"), job
        assert time.monotonic() < deadline, job
        time.sleep(0.2)
    found: dict[str, Any] = job
    return found


def _generate(client: httpx.Client, adapter_id: str) -> None:
    asked = {
        "adapter_id": adapter_id,
        "messages": [{"role": "user", "content": f"say 7 {CANARY}"}],
        "max_tokens": 8,
    }
    for stream in (False, True):
        answer = client.post("/generate", json=asked | {"stream": stream})
        assert answer.status_code == 200, answer.text
