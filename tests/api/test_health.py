"""Health tells the truth: /healthz of the process, /readyz of each part in turn."""

import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.services import Services
from jobs.store import Store
from storage.objects import StorageUnavailable
from tests import clock
from tests.api.inference import Inference

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
async def connected(services: Services) -> None:
    await services.http.aclose()
    transport = httpx.ASGITransport(Inference().app)
    services.http = httpx.AsyncClient(transport=transport, base_url="http://inference.test")


async def ready(nobody: httpx.AsyncClient) -> tuple[int, dict[str, Any]]:
    answer = await nobody.get("/readyz")
    return answer.status_code, answer.json()


async def test_with_all_parts_up_it_is_ready(nobody: httpx.AsyncClient) -> None:
    assert await ready(nobody) == (
        200,
        {
            "status": "ready",
            "database": "ok",
            "storage": "ok",
            "broker": "embedded",
            "inference": "ok",
        },
    )


async def test_without_inference_or_broker_it_is_degraded(
    nobody: httpx.AsyncClient, services: Services
) -> None:
    await services.http.aclose()
    services.http = httpx.AsyncClient(base_url="http://127.0.0.1:9")
    status, found = await ready(nobody)
    assert (status, found["status"], found["inference"]) == (200, "degraded", "unreachable")


class DownWakeUps:
    def wake(self, queue: str) -> None:
        pass

    def waiting(self, queue: str) -> int:
        raise ConnectionError("down")


async def test_a_broker_that_is_down_is_reported_and_jobs_are_still_taken(
    nobody: httpx.AsyncClient, services: Services
) -> None:
    settings = services.settings.model_copy(update={"broker_url": "redis://127.0.0.1:9"})
    services.settings, services.wakeups = settings, DownWakeUps()
    status, found = await ready(nobody)
    assert (status, found["status"], found["broker"]) == (200, "degraded", "unreachable")


async def test_without_storage_it_is_not_ready(
    nobody: httpx.AsyncClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down() -> None:
        raise StorageUnavailable("s3://secret-bucket does not answer")

    monkeypatch.setattr(services.objects, "ping", down)
    status, found = await ready(nobody)
    assert (status, found["status"], found["storage"]) == (503, "unavailable", "unreachable")
    assert (await nobody.get("/healthz")).status_code == 200


async def test_a_storage_that_hangs_is_not_waited_for(
    nobody: httpx.AsyncClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.health.CHECK_S", 0.2)
    monkeypatch.setattr(services.objects, "ping", lambda: time.sleep(2))
    began = clock.now()
    status, found = await ready(nobody)
    assert (status, found["storage"]) == (503, "unreachable")
    assert clock.now() - began < 1.5


async def test_a_database_of_another_schema_is_not_ready(
    nobody: httpx.AsyncClient, services: Services, tmp_path: Path
) -> None:
    real = services.store
    services.store = Store(f"sqlite:///{tmp_path / 'empty.db'}")
    status, found = await ready(nobody)
    assert (status, found["database"]) == (503, "not_migrated")
    services.store.close()
    services.store = real


async def test_a_database_that_is_gone_is_a_503_that_says_when_to_come_back(
    client: httpx.AsyncClient, nobody: httpx.AsyncClient, services: Services, tmp_path: Path
) -> None:
    from sqlalchemy import text

    with services.store.database.write() as connection:
        connection.execute(text("alter table api_keys rename to elsewhere"))
    answer = await client.get("/jobs")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "database_unavailable")
    assert int(answer.headers["retry-after"]) > 0
