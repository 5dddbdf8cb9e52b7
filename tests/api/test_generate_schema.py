"""POST /generate with a schema, through a real inference server."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.services import Services
from tests.engine.infer.schemas import HOSTILE, NESTED, check
from tests.engine.infer.world import World, serve, write_base

pytestmark = pytest.mark.anyio

ASK = {"prompt": "say", "base_model": "tiny", "temperature": 1.5, "max_tokens": 400}
FIELD = "response_format.json_schema.schema"


def format_of(schema: dict[str, Any]) -> dict[str, Any]:
    named = {"name": "answer", "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


@pytest.fixture(autouse=True)
async def connected(services: Services, tmp_path: Path) -> AsyncIterator[None]:
    """Behind the service's base `tiny` is a model of the tests' own."""
    world = World(tmp_path, write_base(tmp_path / "base", context=512))
    server = serve(world)
    inference = await asyncio.to_thread(server.__enter__)
    await services.http.aclose()
    services.http = httpx.AsyncClient(base_url=inference.base_url, timeout=60)
    yield
    await services.http.aclose()
    await asyncio.to_thread(server.__exit__, None, None, None)


async def test_whole_answers_satisfy_their_schema(client: httpx.AsyncClient) -> None:
    bodies = [ASK | format_of(NESTED) | {"seed": seed} for seed in range(12)]
    answers = await asyncio.gather(*(client.post("/generate", json=body) for body in bodies))
    whole = [each.json() for each in answers if each.json()["finish_reason"] == "stop"]
    assert len(whole) >= 6
    for answer in whole:
        check(answer["text"], NESTED)
    assert len({answer["text"] for answer in whole}) == len(whole)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("schema", "param"),
    [
        ({"type": "strnig"}, f"{FIELD}.type"),
        (HOSTILE["nested repetitions"][0], f"{FIELD}.pattern"),
        (HOSTILE["a large divisor"][0], FIELD),
        (HOSTILE["a reference elsewhere"][0], f"{FIELD}.$ref"),
        (HOSTILE["what masks cannot keep"][0], FIELD),
    ],
)
async def test_a_schema_that_cannot_be_kept_is_refused_at_its_field(
    client: httpx.AsyncClient, schema: dict[str, Any], param: str, stream: bool
) -> None:
    answer = await client.post("/generate", json=ASK | format_of(schema) | {"stream": stream})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (422, "schema_invalid", param)
