"""The application in this process, as the tests of the API have it, and every operation it has."""

from typing import Any, NamedTuple

import pytest
from fastapi import FastAPI

# The fixtures of tests/api: pytest finds them by their names here.
from tests.api.conftest import (  # noqa: F401
    anyio_backend,
    app,
    base_folder,
    client,
    client_of,
    connected,
    dataset,
    inference,
    key_of,
    nobody,
    services,
    settings,
    stored,
)


class Operation(NamedTuple):
    method: str
    path: str
    document: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@pytest.fixture
def operations(app: FastAPI) -> list[Operation]:  # noqa: F811
    """Every operation of the OpenAPI document, so that a new route is tested by being there."""
    found = [
        Operation(method.upper(), path, document)
        for path, methods in app.openapi()["paths"].items()
        for method, document in methods.items()
    ]
    assert len(found) >= 36
    return found
