"""A service to be fuzzed, on a real server, with one of everything in it."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from api.app import create_app
from api.services import Services, open_services
from engine.spec import SftMethod
from jobs.keys import SCOPES
from jobs.model import Checkpoint, Dataset, JobError, JobSpec
from jobs.tables import adapters, jobs, webhook_endpoints
from jobs.webhooks import EventType
from storage.keys import dataset_source
from storage.memory import MemoryStore
from tests.api.conftest import base_folder  # noqa: F401  # a fixture
from tests.api.inference import Inference
from tests.api.making import publish_adapter, unhurried
from tests.api.serving import serve
from tests.network import NetworkUsed

# The ids in the document's examples, so that what they name is there.
EXAMPLE = "0123456789abcdef01234567"
ROW = b'{"prompt": "say the number", "completion": "it is 7"}\n'


class Fuzzed(NamedTuple):
    url: str
    key: str
    data_dir: Path


@pytest.fixture
def no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing outside has an address: webhooks are made up here, and tried."""
    look_up = socket.getaddrinfo

    def of_here_alone(host: Any, *rest: Any, **options: Any) -> Any:
        try:
            return look_up(host, *rest, **options)
        except NetworkUsed:
            raise socket.gaierror(socket.EAI_NONAME, "no names here") from None

    monkeypatch.setattr(socket, "getaddrinfo", of_here_alone)


@pytest.fixture
def fuzzed(tmp_path: Path, base_folder: Path, no_names: None) -> Iterator[Fuzzed]:  # noqa: F811
    inference = Inference()
    inference.models = [{"id": "luthier-tiny", "parent": None}]
    with serve(inference.app) as inference_port:
        settings = unhurried(
            data_dir=tmp_path / "data",
            base_models={"luthier-tiny": str(base_folder), "tiny": str(base_folder)},
            inference_url=f"http://127.0.0.1:{inference_port}",
            max_queued_jobs=0,
        )
        services = open_services(settings)
        services.objects = MemoryStore()
        tenant_id = services.store.tenants.create("ours").id
        key, _ = services.store.tenants.issue_key(tenant_id, "fuzz", SCOPES)
        _fill(services, tenant_id, tmp_path)
        with serve(create_app(services)) as port, _jobs_end(services):
            yield Fuzzed(f"http://127.0.0.1:{port}", key, settings.data_dir)


@contextmanager
def _jobs_end(services: Services) -> Iterator[None]:
    """Every job fails soon after it was posted, so that its stream of events ends."""
    leases, closing = services.store.leases, threading.Event()
    error = JobError(code="worker_lost", message="The worker of this test does nothing.")

    def work() -> None:
        while not closing.wait(0.05):
            while claim := leases.claim("worker", "default"):
                leases.fail(claim.job.id, claim.job.attempt, error)

    worker = threading.Thread(target=work)
    worker.start()
    yield
    closing.set()
    worker.join()


def _fill(services: Services, tenant_id: str, folder: Path) -> None:
    """One of everything, under the ids that the document's examples name."""
    store = services.store
    dataset = Dataset(
        id=f"ds_{EXAMPLE}",
        tenant_id=tenant_id,
        name="rows",
        format="jsonl",
        row_type="conversation",
        rows=1,
        size_bytes=len(ROW),
        sha256="0" * 64,
        duplicates=0,
        warnings=(),
        created_at=0.0,
    )
    services.objects.put(dataset_source(tenant_id, dataset.id), ROW)
    store.datasets.add(dataset)
    spec = JobSpec(base_model="tiny", dataset=dataset.id, method=SftMethod(max_length=64))
    made = store.jobs.submit(tenant_id, spec, base_revision="r").job
    adapter_id = publish_adapter(services, "ours", folder / "adapter")
    ends: tuple[EventType, ...] = ("fine_tuning.job.cancelled",)
    hook = store.webhooks.create(tenant_id, "hook", "https://127.0.0.1:9/", ends)
    with store.database.write() as connection:
        for table, old, new in (
            (jobs, made.id, f"job_{EXAMPLE}"),
            (adapters, adapter_id, f"ad_{EXAMPLE}"),
            (webhook_endpoints, hook.id, f"we_{EXAMPLE}"),
        ):
            connection.execute(table.update().where(table.c.id == old).values(id=new))
    assert store.leases.claim("worker", "default") is not None
    store.leases.add_checkpoint(
        Checkpoint(
            id=f"ck_{EXAMPLE}",
            job_id=f"job_{EXAMPLE}",
            attempt=1,
            step=1,
            files=(),
            metrics={},
            created_at=0.0,
        )
    )
    store.leases.release(f"job_{EXAMPLE}", 1)
