"""What the tests of jobs share: a random base, and a house for each test."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.bases import make_base
from tests.workers import House


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


class Workshop(NamedTuple):
    house: House
    worker: subprocess.Popen[bytes]


FAST = {"lease_s": 60.0, "heartbeat_s": 0.3, "sweep_s": 0.5}


@pytest.fixture(scope="session")
def workshop(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """A house whose worker is up, and stays it: for tests that do neither start nor end one."""
    folder = tmp_path_factory.mktemp("workshop") / "house"
    house = House(folder, tiny_base, max_attempts=2, **FAST)
    with house.worker() as worker:
        yield Workshop(house, worker)
    house.close()


@pytest.fixture
def make_house(tiny_base: Path, tmp_path: Path) -> Iterator[Callable[..., House]]:
    made: list[House] = []

    def make(name: str = "house", **settings: Any) -> House:
        made.append(House(tmp_path / name, tiny_base, **(FAST | settings)))
        return made[-1]

    yield make
    for house in made:
        house.close()
