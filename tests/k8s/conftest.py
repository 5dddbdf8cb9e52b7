"""Installations as kustomize renders them, each rendered once."""

from collections.abc import Iterator

import pytest

from tests.k8s.manifests import INSTALLATIONS, Installation, Object, render

_Rendered = dict[Installation, list[Object]]


@pytest.fixture(scope="session")
def _rendered(tmp_path_factory: pytest.TempPathFactory) -> _Rendered:
    return {one: render(one, tmp_path_factory.mktemp("kustomize")) for one in INSTALLATIONS}


@pytest.fixture(params=INSTALLATIONS, ids=str)
def objects(request: pytest.FixtureRequest, _rendered: _Rendered) -> Iterator[list[Object]]:
    """The objects of each installation in turn."""
    yield _rendered[request.param]


@pytest.fixture
def dev(_rendered: _Rendered) -> list[Object]:
    return _rendered[Installation("dev")]


@pytest.fixture
def gpu(_rendered: _Rendered) -> list[Object]:
    return _rendered[Installation("gpu")]
