"""Both databases, one after the other, for what has to hold on each of them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.store import Store

MakeStore = Callable[..., Store]


@pytest.fixture(params=["sqlite", "postgresql"])
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def url(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database."""
    if kind == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs.db'}"
    found: str = request.getfixturevalue("postgres_url")
    return found


@pytest.fixture
def make_store(kind: str, store_url: Callable[[str], str]) -> Iterator[MakeStore]:
    made: list[Store] = []
    url = store_url(kind)

    def make(**options: Any) -> Store:
        store = Store(url, pepper="p", **options)
        made.append(store)
        return store

    yield make
    for store in made:
        store.close()
