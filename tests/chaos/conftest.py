"""Houses with workers that can be killed: embedded, or over PostgreSQL, Redis and S3."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bases import make_hollow_base
from tests.chaos.house import ChaosHouse
from tests.chaos.nursery import Nursery
from tests.servers import S3Server

Make = Callable[..., ChaosHouse]


@pytest.fixture(scope="session")
def hollow_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hollow_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def make_house(hollow_base: Path, nursery: Nursery, tmp_path: Path) -> Iterator[Make]:
    """Makes a house of one machine; settings as named, and short times."""
    made: list[ChaosHouse] = []

    def make(**settings: Any) -> ChaosHouse:
        house = ChaosHouse(tmp_path / f"house-{len(made)}", hollow_base, nursery, **settings)
        made.append(house)
        return house

    yield make
    for house in made:
        house.close()


@pytest.fixture
def postgres_house(make_house: Make, postgres_store_url: str) -> Make:
    """The same over PostgreSQL."""
    return lambda **settings: make_house(database_url=postgres_store_url, **settings)


@pytest.fixture
def production(make_house: Make, postgres_store_url: str, redis_url: str, s3: S3Server) -> Make:
    """The same over PostgreSQL, Redis and S3."""
    parts = {
        "database_url": postgres_store_url,
        "broker_url": redis_url,
        "storage_url": f"s3://{s3.bucket}",
        "s3_endpoint_url": s3.endpoint_url,
        "s3_access_key": s3.access_key,
        "s3_secret_key": s3.secret_key,
    }
    return lambda **settings: make_house(**(parts | settings))
