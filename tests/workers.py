"""Worker processes over one machine's database and objects, for tests that kill and resume them."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.bases import BaseCatalogue
from engine.rows import RowType
from engine.spec import LoraPeft, Peft, Resources, SftMethod
from jobs.model import TERMINAL, Dataset, Job, JobSpec, new_id
from jobs.opening import open_objects, open_store
from jobs.planning import plan
from jobs.settings import Settings, as_environment
from jobs.stages import Pipeline, PipelineSpec
from storage.keys import dataset_source
from tests.databases import new_sqlite

REPO = Path(__file__).resolve().parent.parent


class House:
    """A data folder with a tenant in it, a store and objects to look at, and no server."""

    def __init__(self, data_dir: Path, base: Path, **settings: Any) -> None:
        models = settings.pop("base_models", {"tiny": str(base)})
        self.settings = Settings(data_dir=data_dir, base_models=models, **settings)
        if not self.settings.database_url:
            new_sqlite(data_dir / "luthier.db")
        self.store = open_store(self.settings)
        self.objects = open_objects(self.settings)
        self.bases = BaseCatalogue(self.settings.base_models)
        self.tenant_id = self.store.tenants.create("tests").id

    def add_dataset(self, rows: list[dict[str, Any]], row_type: RowType = "conversation") -> str:
        data = "\n".join(json.dumps(row) for row in rows).encode()
        dataset = Dataset(
            id=new_id("ds"),
            tenant_id=self.tenant_id,
            name="rows",
            format="jsonl",
            row_type=row_type,
            rows=len(rows),
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            duplicates=0,
            warnings=(),
            created_at=0.0,
        )
        self.objects.put(dataset_source(self.tenant_id, dataset.id), data)
        return self.store.datasets.add(dataset).id

    def submit(
        self,
        dataset_id: str,
        *,
        checkpoint_every: int = 5,
        peft: Peft | None = None,
        resources: Resources | None = None,
        **method: Any,
    ) -> str:
        spec = JobSpec(
            base_model="tiny",
            dataset=dataset_id,
            method=SftMethod(**method),
            peft=peft or LoraPeft(r=4),
            checkpoint_every=checkpoint_every,
            resources=resources or Resources(),
        )
        revision = self.bases.find("tiny").revision
        return self.store.jobs.submit(self.tenant_id, spec, base_revision=revision).job.id

    def submit_pipeline(self, dataset_id: str, **inits: str | None) -> Pipeline:
        """Stages by name, each with what it goes on with."""
        small = {"type": "lora", "r": 1, "target_modules": ["q_proj"]}
        stages: dict[str, dict[str, Any]] = {
            name: {"dataset": dataset_id, "method": {"type": "sft", "max_steps": 2}, "init": init}
            | ({} if init else {"peft": small})
            for name, init in inits.items()
        }
        return self.start_pipeline(stages)

    def start_pipeline(self, stages: dict[str, dict[str, Any]]) -> Pipeline:
        """Stages as a client writes them, planned as the API does."""
        whole = {name: {"base_model": "tiny"} | stage for name, stage in stages.items()}
        spec = PipelineSpec.model_validate({"stages": whole})
        planned = plan(self.store, self.bases, self.tenant_id, spec, max_lora_rank=64)
        return self.store.pipelines.submit(self.tenant_id, spec, planned).pipeline

    def job(self, job_id: str) -> Job:
        return self.store.jobs.get(self.tenant_id, job_id)

    def wait(
        self, job_id: str, until: Callable[[Job], bool] | None = None, timeout_s: float = 150
    ) -> Job:
        """The job as soon as `until` holds (by default: it has ended)."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            job = self.job(job_id)
            if until(job) if until else job.status in TERMINAL:
                return job
            time.sleep(0.02)
        raise AssertionError(f"not in {timeout_s} s: {self.job(job_id)!r}")

    @contextmanager
    def worker(self) -> Iterator[subprocess.Popen[bytes]]:
        """A real worker process; it is ended, with its children, when the block is left."""
        environment = as_environment(self.settings)
        command = [
            sys.executable,
            "-m",
            "cli.main",
            "worker",
            "--data-dir",
            str(self.settings.data_dir),
        ]
        process = subprocess.Popen(
            command, cwd=REPO, env=environment, start_new_session=True, stdin=subprocess.DEVNULL
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(90)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def close(self) -> None:
        self.store.close()


def conversations(count: int) -> list[dict[str, Any]]:
    """Rows that a model can tell apart."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"say {number}"},
                {"role": "assistant", "content": f"number {number} it is"},
            ]
        }
        for number in range(count)
    ]
