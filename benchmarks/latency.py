"""How long a client waits: the API's start, a worker's first job, and its later jobs.

Run by `make bench`. It starts a service of its own on free ports, posts short jobs on the model
that ships, one after another, and prints what each took from the accepted request on.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from cli.client import Client
from cli.dataset import send
from cli.family import listen, port_of
from cli.home import key_path
from cli.service import Service
from jobs.settings import REPO, Settings

JOBS = 8
DATA = REPO / "examples" / "data" / "demo_train.jsonl"
SPEC = {
    "base_model": "luthier-tiny",
    "method": {"type": "sft", "max_steps": 10, "learning_rate": 2e-3},
    "peft": {"type": "lora", "r": 16},
}


def main() -> None:
    print(f"api: first answer of /healthz after {statistics.median(starts(5)):.2f} s (median of 5)")
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data_dir=Path(folder), port=0, inference_port=0)
        with Service(settings) as service:
            for _ in service.starting():
                pass
            key = key_path(settings.data_dir).read_text().strip()
            with Client(service.url, key) as client:
                measure(client)


def starts(times: int) -> list[float]:
    """Seconds from starting `luthier api` to its first answer, again and again."""
    return [start() for _ in range(times)]


def start() -> float:
    probe = listen("127.0.0.1", 0, "--port")
    port = port_of(probe)
    probe.close()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "cli.main", "api", "--port", str(port)]
        begun = time.monotonic()
        process = subprocess.Popen([*command, "--data-dir", folder], stderr=subprocess.DEVNULL)
        try:
            while not answers(f"http://127.0.0.1:{port}/healthz"):
                time.sleep(0.01)
            return time.monotonic() - begun
        finally:
            process.terminate()
            process.wait()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def measure(client: Client) -> None:
    dataset = send(client, DATA)
    print(f"{'job':>5} {'accepted to first step':>24} {'training':>10} {'not training':>14}")
    first_steps = []
    for number in range(1, JOBS + 1):
        timings = run(client, SPEC | {"dataset": dataset["id"]})
        first_steps.append(timings["first_step_s"])
        rest = timings["total_s"] - timings["training_s"]
        print(
            f"{number:>5} {timings['first_step_s']:>22.2f} s"
            f" {timings['training_s']:>8.2f} s {rest:>12.2f} s"
        )
    warm = first_steps[1:]
    print(f"warm: median {statistics.median(warm):.2f} s, slowest {max(warm):.2f} s")


def run(client: Client, spec: dict[str, object]) -> dict[str, float]:
    job = client.post("/jobs", spec)
    while job["status"] in ("queued", "running"):
        time.sleep(0.1)
        job = client.get(f"/jobs/{job['id']}")
    if job["status"] != "succeeded":
        raise SystemExit(f"job {job['id']} {job['status']}: {job['error']}")
    timings: dict[str, float] = job["timings"]
    return timings


if __name__ == "__main__":
    main()
