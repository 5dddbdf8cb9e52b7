"""A base without torch for servers under load."""

from pathlib import Path

import pytest

from tests.bases import make_hollow_base


@pytest.fixture(scope="session")
def hollow_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hollow_base(tmp_path_factory.mktemp("base"))
