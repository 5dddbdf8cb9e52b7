"""The service on a real socket, for OpenAI's own client; over SQLite and a folder, or over real
servers.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import openai
import pytest

from api.app import create_app
from api.services import Services, open_services
from jobs.collecting import Collecting
from tests.api.conftest import anyio_backend, base_folder  # noqa: F401  # fixtures
from tests.api.making import unhurried
from tests.api.serving import serve
from tests.databases import new_sqlite
from tests.servers import S3Server


@dataclass
class Filing:
    """A running API, and what can be seen of it from outside."""

    url: str
    services: Services
    closing: ExitStack = field(default_factory=ExitStack)

    def key(self, tenant: str = "ours") -> str:
        tenants = self.services.store.tenants
        return tenants.issue_key(tenants.create(tenant).id, "test")[0]

    def client(self, tenant: str = "ours") -> openai.OpenAI:
        """Closed with the server. Nothing is tried twice: a fault must be seen."""
        made = openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key(tenant), max_retries=0)
        return self.closing.enter_context(made)

    def stored(self) -> list[str]:
        return [info.key for info in self.services.objects.list("")]

    def expire(self) -> int:
        """As a worker does every minute."""
        collecting = Collecting(
            self.services.store,
            self.services.objects,
            every_s=60,
            orphan_s=60,
            checkpoint_days=1,
        )
        return collecting.expire()


MakeFiling = Callable[..., Filing]


@pytest.fixture
def make_filing(tmp_path: Path, base_folder: Path) -> Iterator[MakeFiling]:  # noqa: F811
    with ExitStack() as stack:

        def make(**settings: object) -> Filing:
            given = {"data_dir": tmp_path / "data", "base_models": {"tiny": str(base_folder)}}
            if "database_url" not in settings:
                new_sqlite(tmp_path / "data" / "luthier.db")
            services = open_services(unhurried(**(given | settings)))
            port = stack.enter_context(serve(create_app(services)))
            filing = Filing(f"http://127.0.0.1:{port}", services)
            stack.push(filing.closing)
            return filing

        yield make


@pytest.fixture
def filing(make_filing: MakeFiling) -> Filing:
    return make_filing()


@pytest.fixture(params=["embedded", "production"])
def anywhere(request: pytest.FixtureRequest, make_filing: MakeFiling) -> Filing:
    """Over SQLite and a folder; and over PostgreSQL and S3."""
    if request.param == "embedded":
        return make_filing()
    s3: S3Server = request.getfixturevalue("s3")
    url: str = request.getfixturevalue("postgres_store_url")
    return make_filing(
        database_url=url,
        storage_url=f"s3://{s3.bucket}/luthier",
        s3_endpoint_url=s3.endpoint_url,
        s3_access_key=s3.access_key,
        s3_secret_key=s3.secret_key,
    )


@pytest.fixture
def client(filing: Filing) -> openai.OpenAI:
    return filing.client()


@pytest.fixture
async def async_client(filing: Filing) -> AsyncIterator[openai.AsyncOpenAI]:
    key = filing.key()
    async with openai.AsyncOpenAI(
        base_url=f"{filing.url}/v1", api_key=key, max_retries=0
    ) as client:
        yield client
