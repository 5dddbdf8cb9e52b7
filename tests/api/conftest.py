"""The application in this process: a real SQLite store, objects in memory, a base without torch."""

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from api.app import create_app
from api.services import Services, open_services
from jobs.settings import Settings
from storage.memory import MemoryStore
from tests.api.inference import Inference
from tests.api.making import unhurried
from tests.bases import make_hollow_base
from tests.databases import new_sqlite


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base's folder: a byte-level tokenizer, a chat template, and one layer of zeros."""
    return make_hollow_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def settings(tmp_path: Path, base_folder: Path) -> Settings:
    new_sqlite(tmp_path / "data" / "luthier.db")
    return unhurried(data_dir=tmp_path / "data", base_models={"tiny": str(base_folder)})


@pytest.fixture
async def services(settings: Settings) -> AsyncIterator[Services]:
    services = open_services(settings)
    services.objects = MemoryStore()
    yield services
    await services.close()


@pytest.fixture
def app(services: Services) -> FastAPI:
    return create_app(services)


@pytest.fixture
def key_of(services: Services) -> Callable[[str], str]:
    """A new key of a tenant by name."""

    def issue(name: str) -> str:
        tenant = services.store.tenants.create(name)
        return services.store.tenants.issue_key(tenant.id, "test")[0]

    return issue


@pytest.fixture
async def client_of(
    app: FastAPI, key_of: Callable[[str], str]
) -> AsyncIterator[Callable[[str], httpx.AsyncClient]]:
    """Makes a client of a tenant."""
    clients: list[httpx.AsyncClient] = []

    def make(name: str) -> httpx.AsyncClient:
        clients.append(
            httpx.AsyncClient(
                transport=httpx.ASGITransport(app),
                base_url="http://luthier.test",
                headers={"authorization": f"Bearer {key_of(name)}"},
            )
        )
        return clients[-1]

    yield make
    for client in clients:
        await client.aclose()


@pytest.fixture
def client(client_of: Callable[[str], httpx.AsyncClient]) -> httpx.AsyncClient:
    """The client of tenant `ours`."""
    return client_of("ours")


@pytest.fixture
def nobody(app: FastAPI) -> httpx.AsyncClient:
    """A client without a key."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://luthier.test")


@pytest.fixture
def stored(services: Services) -> Callable[[], list[str]]:
    """The keys of all objects there are."""

    def keys() -> list[str]:
        return [info.key for info in services.objects.list("")]

    return keys


@pytest.fixture
async def dataset(client: httpx.AsyncClient) -> dict[str, Any]:
    """A small dataset of conversations, uploaded."""
    line = json.dumps({"prompt": "say the number", "completion": "it is 7"})
    answer = await client.post("/datasets?name=numbers.jsonl", content=f"{line}\n" * 60)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.fixture
def inference() -> Inference:
    return Inference()


@pytest.fixture
async def connected(services: Services, inference: Inference) -> None:
    """The application asks this inference server, in this process too."""
    await services.http.aclose()
    transport = httpx.ASGITransport(inference.app)
    services.http = httpx.AsyncClient(transport=transport, base_url="http://inference.test")
