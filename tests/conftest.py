"""Fixtures for every test: real servers started once when first asked for, and no other network."""

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TypeVar

import pytest
import redis
from hypothesis import settings

from tests import clock, servers
from tests.databases import new_sqlite, postgres_template
from tests.network import stay_on_loopback
from tests.record import Record
from tests.servers import S3Server
from tests.storage.faulty_proxy import Weather, faulty_proxy

# `make fuzz`: 200 cases an operation, 100,000 files for the row parser.
settings.register_profile("fuzz", max_examples=12_500)

# The one place of the tests that touches the environment, and before torch can be imported.
_ENVIRONMENT = os.environ  # noqa: TID251  # see above
_IN_CI = _ENVIRONMENT.get("CI") == "true"
_ENVIRONMENT["HF_HUB_OFFLINE"] = "1"
_ENVIRONMENT["OMP_WAIT_POLICY"] = "PASSIVE"
for _name in [name for name in _ENVIRONMENT if name.startswith(("AWS_", "LUTHIER_"))]:
    del _ENVIRONMENT[_name]  # a developer's own accounts are no part of a test

pytest_plugins = ["tests.schedule", "tests.second_chance"]

_Server = TypeVar("_Server")


@contextmanager
def _started(server: Callable[[], AbstractContextManager[_Server]]) -> Iterator[_Server]:
    """A running server. One that cannot run is a failure in CI and skips the test elsewhere."""
    with ExitStack() as stack:
        try:
            running = stack.enter_context(server())
        except servers.ServerMissing as missing:
            if _IN_CI and not isinstance(missing, servers.PackageMissing):
                pytest.fail(f"CI needs this server: {missing}")
            pytest.skip(str(missing))
        yield running


@pytest.fixture(scope="session", autouse=True)
def _clock() -> Iterator[None]:
    with clock.watched():
        yield


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a PostgreSQL server's own database: for making others, not for tests to fill."""
    with _started(servers.postgres) as url:
        yield url


@pytest.fixture
def postgres_database(postgres_server: str) -> Iterator[Callable[[], str]]:
    """Makes a fresh PostgreSQL database at each call; its `postgresql+psycopg://` URL."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(servers.fresh_database(postgres_server))


@pytest.fixture
def postgres_url(postgres_database: Callable[[], str]) -> str:
    """The `postgresql+psycopg://` URL of a fresh database of this test."""
    return postgres_database()


@pytest.fixture(scope="session")
def _postgres_template(postgres_server: str) -> Iterator[str]:
    with postgres_template(postgres_server) as name:
        yield name


@pytest.fixture
def postgres_store_url(postgres_server: str, _postgres_template: str) -> Iterator[str]:
    """The URL of a fresh database of this test at the newest schema."""
    with servers.fresh_database(postgres_server, _postgres_template) as url:
        yield url


@pytest.fixture
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """By kind: the URL of this test's database of that kind, fresh and at the newest schema."""

    def url_of(kind: str) -> str:
        if kind == "sqlite":
            return new_sqlite(tmp_path / "jobs.db")
        url: str = request.getfixturevalue("postgres_store_url")
        return url

    return url_of


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """The URL of a Redis-compatible server that all tests share."""
    with _started(servers.valkey) as url:
        yield url


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """The URL of a Redis-compatible server, emptied for this test."""
    with redis.Redis.from_url(redis_server) as client:
        client.flushall()
    return redis_server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """An S3 server that all tests share; its bucket is empty."""
    with _started(servers.seaweedfs) as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, pytestconfig: pytest.Config) -> Iterator[S3Server]:
    """An S3 server with a fresh bucket of this test; with --storage-storm, behind the storm."""
    seed = pytestconfig.getoption("--storage-storm")
    with servers.fresh_bucket(s3_server) as server:
        if seed is None:
            yield server
            return
        with faulty_proxy(server.endpoint_url, Weather(seed), stall_s=1.0) as storm:
            yield server._replace(endpoint_url=storm.url)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak-s", type=float, default=1800.0, help="how long the soak test lasts")
    parser.addoption(
        "--storage-storm", type=int, help="a seed: nearly half of the requests to S3 fail"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "soak" in str(config.option.markexpr):
        return
    for item in items:
        if item.get_closest_marker("soak"):
            item.add_marker(pytest.mark.skip(reason="takes the whole machine; run `make soak`"))


_REPORT = pytest.StashKey[pytest.TestReport]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        item.stash[_REPORT] = report
    return report


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Iterator[Record]:
    """Writes down the figures that docs/reliability.md shows; see tests/record.py."""
    figures = Record(request.node.nodeid)
    yield figures
    report = request.node.stash.get(_REPORT, None)
    passed = report is not None and report.outcome != "failed"
    figures.write("passed" if passed else "failed")


@pytest.fixture(scope="session")
def promtool() -> Iterator[Path]:
    """Prometheus' own checker of rules and metrics."""
    with _started(lambda: nullcontext(servers.prometheus_program("promtool"))) as program:
        yield program


@pytest.fixture(autouse=True)
def _no_network_but_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    stay_on_loopback(monkeypatch)
