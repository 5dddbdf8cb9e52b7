"""`luthier serve` with the model that ships and an adapter that it trained, for whole clients."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from cli.home import key_path
from cli.service import Service
from tests.api.making import unhurried

REPO = Path(__file__).resolve().parents[2]
DATA = REPO / "examples" / "data"
BASE = "luthier-tiny"
TRAIN_S = 180


@dataclass(frozen=True)
class House:
    """Where it is, a key of its first tenant, and the adapter."""

    url: str
    key: str
    adapter_id: str

    @property
    def v1(self) -> str:
        return f"{self.url}/v1"


@contextmanager
def open_house(data_dir: Path, *, epochs: int = 2, **more: Any) -> Iterator[House]:
    """The demo's task, learned for some seconds: far from well, and far better than the base."""
    models = {BASE: str(REPO / "examples" / "models" / BASE)}
    settings = unhurried(data_dir=data_dir, base_models=models, port=0, inference_port=0, **more)
    with Service(settings, base_model=BASE) as service:
        for _ in service.starting():
            pass
        key = key_path(data_dir).read_text().strip()
        headers = {"authorization": f"Bearer {key}"}
        with httpx.Client(base_url=service.url, headers=headers, timeout=TRAIN_S) as client:
            adapter_id = _train(client, epochs)
        yield House(service.url, key, adapter_id)


def _train(client: httpx.Client, epochs: int) -> str:
    rows = (DATA / "demo_train.jsonl").read_bytes()
    dataset = client.post("/datasets?name=demo&format=jsonl", content=rows).json()
    spec: dict[str, Any] = json.loads((DATA / "demo_job.json").read_text())
    spec["method"]["num_train_epochs"] = epochs
    job = client.post("/jobs", json=spec | {"dataset": dataset["id"]}).json()
    events = f"/jobs/{job['id']}/events"
    with client.stream("GET", events, headers={"accept": "text/event-stream"}) as stream:
        for _ in stream.iter_lines():
            pass
    job = client.get(f"/jobs/{job['id']}").json()
    assert job["status"] == "succeeded", job
    return str(job["adapter_id"])
