"""Installations as kustomize renders them, each rendered once."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.k8s.manifests import INSTALLATIONS, KUBECTL, Installation, Object, render

_Rendered = dict[Installation, list[Object]]


@pytest.fixture(scope="session")
def _rendered(tmp_path_factory: pytest.TempPathFactory) -> _Rendered:
    return {one: render(one, tmp_path_factory.mktemp("kustomize")) for one in INSTALLATIONS}


@pytest.fixture(params=INSTALLATIONS, ids=str)
def objects(request: pytest.FixtureRequest, _rendered: _Rendered) -> list[Object]:
    """The objects of each installation in turn."""
    return _rendered[request.param]


@pytest.fixture
def dev(_rendered: _Rendered) -> list[Object]:
    return _rendered[Installation("dev")]


@pytest.fixture
def gpu(_rendered: _Rendered) -> list[Object]:
    return _rendered[Installation("gpu")]


@pytest.fixture(scope="session")
def kubeconfig() -> Path:
    """The configuration of a cluster that can be reached; tests that need one skip elsewhere."""
    named = os.environ.get("KUBECONFIG")  # noqa: TID251  # where people say which cluster is meant
    if not named:
        pytest.skip("KUBECONFIG names no cluster")
    path = Path(named)
    found = subprocess.run(
        [KUBECTL, f"--kubeconfig={path}", "--request-timeout=5s", "version"], capture_output=True
    )
    if found.returncode:
        pytest.skip(f"the cluster of {path} cannot be reached")
    return path
