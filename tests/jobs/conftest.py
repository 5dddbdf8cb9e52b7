"""What the tests of jobs share: a random base, and a house for each test."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bases import make_base
from tests.workers import House


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def make_house(tiny_base: Path, tmp_path: Path) -> Iterator[Callable[..., House]]:
    made: list[House] = []

    def make(name: str = "house", **settings: Any) -> House:
        fast = {"lease_s": 60.0, "heartbeat_s": 0.3, "sweep_s": 0.5}
        made.append(House(tmp_path / name, tiny_base, **(fast | settings)))
        return made[-1]

    yield make
    for house in made:
        house.close()
