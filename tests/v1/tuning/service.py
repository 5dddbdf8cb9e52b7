"""The API on a real server, and a worker's moves made by hand."""

import json
from pathlib import Path
from typing import Any

import httpx

from api.services import Services
from jobs.model import Checkpoint, JobError, NewEvent, Progress, new_id
from tests.api.making import publish_adapter

ROW = {"prompt": "say the number", "completion": "it is 7"}
PAIR = {"prompt": "q", "chosen": "good", "rejected": "bad"}
QUESTION = {"prompt": "q", "item": {"answer": "good"}}


class Service:
    """What a test talks to, and what it does behind its back."""

    def __init__(self, services: Services, url: str, key: str, folder: Path) -> None:
        self.services, self.url, self.key, self.folder = services, url, key, folder
        self.store = services.store
        self.tenant_id = self.store.tenants.find("ours").id
        self.http = httpx.Client(
            base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=60
        )

    def upload(self, row: dict[str, Any] = ROW, rows: int = 60) -> str:
        content = f"{json.dumps(row)}\n" * rows
        answer = self.http.post("/datasets?name=rows.jsonl", content=content.encode())
        assert answer.status_code == 201, answer.text
        id: str = answer.json()["id"]
        return id

    def claim(self, job_id: str) -> None:
        claim = self.store.leases.claim("worker", "default")
        assert claim is not None
        assert claim.job.id == job_id

    def step(self, job_id: str, step: int, total: int = 4) -> None:
        data = {"step": step, "loss": 2.0 / step, "mean_token_accuracy": 0.5}
        event = NewEvent(type="metrics", message=f"step {step}", data=data)
        progress = Progress(step=step, total_steps=total, epoch=step / 2, loss=2.0 / step)
        self.store.leases.record(job_id, 1, [event], progress, first_step=step == 1)

    def save_checkpoint(self, job_id: str, step: int) -> str:
        checkpoint = Checkpoint(
            id=new_id("ck"),
            job_id=job_id,
            attempt=1,
            step=step,
            files=(),
            metrics={"loss": 0.5},
            created_at=0.0,
        )
        self.store.leases.add_checkpoint(checkpoint)
        return checkpoint.id

    def succeed(self, job_id: str) -> str:
        adapter_id = publish_adapter(self.services, "ours", self.folder / job_id)
        adapter = self.store.adapters.get(self.tenant_id, adapter_id)
        self.store.adapters.delete(self.tenant_id, adapter_id)  # the row is the worker's to write
        self.store.leases.succeed(job_id, 1, adapter.model_copy(update={"job_id": job_id}), 1.0)
        return adapter_id

    def fail(self, job_id: str) -> None:
        error = JobError(code="out_of_memory", message="Too large.", param="method")
        self.store.leases.fail(job_id, 1, error)
