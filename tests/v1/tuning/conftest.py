"""The API on a real server on loopback, and OpenAI's own SDK as its client."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import openai
import pytest

from api.app import create_app
from api.services import open_services
from jobs.keys import SCOPES
from jobs.settings import Settings
from storage.memory import MemoryStore
from tests.api.making import unhurried
from tests.api.serving import serve
from tests.bases import make_hollow_base
from tests.databases import new_sqlite
from tests.v1.tuning.service import Service


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hollow_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def live_settings(tmp_path: Path, base_folder: Path) -> Settings:
    base = str(base_folder)
    new_sqlite(tmp_path / "data" / "luthier.db")
    return unhurried(data_dir=tmp_path / "data", base_models={"tiny": base, "org/tiny": base})


@pytest.fixture
def live(live_settings: Settings, tmp_path: Path) -> Iterator[Service]:
    services = open_services(live_settings)
    services.objects = MemoryStore()
    tenant = services.store.tenants.create("ours")
    key, _ = services.store.tenants.issue_key(tenant.id, "test", SCOPES)
    with serve(create_app(services)) as port:
        service = Service(services, f"http://127.0.0.1:{port}", key, tmp_path)
        yield service
        service.http.close()


@pytest.fixture
def sdk(live: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key=live.key, max_retries=0) as client:
        yield client


@pytest.fixture
async def async_sdk(live: Service) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{live.url}/v1", api_key=live.key, max_retries=0
    ) as client:
        yield client


@pytest.fixture
def other(live: Service) -> Callable[[], openai.OpenAI]:
    """Makes a client of another tenant."""

    def make() -> openai.OpenAI:
        tenants = live.store.tenants
        key, _ = tenants.issue_key(tenants.create("theirs").id, "test", SCOPES)
        return openai.OpenAI(base_url=f"{live.url}/v1", api_key=key, max_retries=0)

    return make
