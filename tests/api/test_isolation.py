"""Tenants: for every operation with an id, a foreign one is exactly as unknown as a made-up one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from api.services import Services
from tests.api.making import publish_adapter, spec_for

pytestmark = pytest.mark.anyio

BODY: dict[str, Any] = {"prompt": "hello"}
# Where lists are that are not called as what is in them.
ROOMS = {
    "files": "v1/files",
    "fine_tuning": "v1/fine_tuning/jobs",
    "models": "v1/models",
    "webhook_endpoints": "v1/webhook_endpoints",
}
# What an operation with an id in its path needs besides, so that nothing but the id is wrong.
BESIDE: dict[str, dict[str, Any]] = {
    "/v1/uploads/{id}/complete": {"json": {"part_ids": ["pt_" + "0" * 24]}},
    "/v1/uploads/{id}/parts": {"files": {"data": b"{}"}},
    "/v1/webhook_endpoints/{id}": {"json": {"name": "mine"}},
    "/v1/webhook_endpoints/{id}/test": {"json": {"event_type": "fine_tuning.job.failed"}},
}


@pytest.fixture
async def owned(
    client: httpx.AsyncClient, dataset: dict[str, Any], services: Services, tmp_path: Path
) -> dict[str, str]:
    """One of everything, of tenant `ours`, by the room it lives in."""
    job = (await client.post("/jobs", json=spec_for(dataset))).json()
    adapter_id = publish_adapter(services, "ours", tmp_path / "adapter")
    pipeline = (await client.post("/pipelines", json={"stages": {"a": spec_for(dataset)}})).json()
    hook = {"name": "a", "url": "https://1.2.3.4/", "event_types": ["fine_tuning.job.failed"]}
    endpoint = (await client.post("/v1/webhook_endpoints", json=hook)).json()
    wanted = {"bytes": 8, "filename": "a.jsonl", "mime_type": "text/plain", "purpose": "fine-tune"}
    upload = (await client.post("/v1/uploads", json=wanted)).json()
    return {
        "files": dataset["id"],
        "uploads": upload["id"],
        "fine_tuning": job["id"],
        "models": adapter_id,
        "webhook_endpoints": endpoint["id"],
        "datasets": dataset["id"],
        "jobs": job["id"],
        "adapters": adapter_id,
        "pipelines": pipeline["id"],
    }


def operations(app: FastAPI) -> list[tuple[str, str]]:
    """Every operation with an id in its path."""
    return [
        (method, path)
        for path, methods in app.openapi()["paths"].items()
        for method in methods
        if "{" in path
    ]


async def test_a_foreign_id_is_as_unknown_as_any_other(
    app: FastAPI, client_of: Callable[[str], httpx.AsyncClient], owned: dict[str, str]
) -> None:
    stranger = client_of("theirs")
    seen = operations(app)
    assert len(seen) >= 16
    for method, path in seen:
        theirs = owned[path.removeprefix("/v1").split("/")[1]]
        prefix = theirs.split("_")[0]
        for made_up in (f"{prefix}_{'0' * 24}", "x" * len(theirs)):
            beside = BESIDE.get(path, {}) if method == "post" else {}
            foreign = await stranger.request(method, path.replace("{id}", theirs), **beside)
            unknown = await stranger.request(method, path.replace("{id}", made_up), **beside)
            where = f"{method} {path}"
            assert foreign.status_code == unknown.status_code == 404, where
            expected = unknown.content.replace(made_up.encode(), theirs.encode())
            assert foreign.content == expected, where
            assert set(foreign.headers) == set(unknown.headers), where


@pytest.mark.parametrize("odd", ["%00", "..%2f..", "a" * 400, "%F0%9F%92%A9", "ds_%27--", "%2e%2e"])
async def test_an_odd_id_is_unknown_too(app: FastAPI, client: httpx.AsyncClient, odd: str) -> None:
    for method, path in operations(app):
        answer = await client.request(method, path.replace("{id}", odd))
        assert answer.status_code in (404, 405), f"{method} {path}"
        assert set(answer.json()) == {"error"}


async def test_ids_in_bodies_and_cursors_are_the_tenants_own_too(
    client_of: Callable[[str], httpx.AsyncClient], owned: dict[str, str]
) -> None:
    stranger = client_of("theirs")
    for noun, id in owned.items():
        if noun in ("models", "uploads"):
            continue  # all at once, and the operator's for everybody; and in no list
        room = ROOMS.get(noun, noun)
        assert (await stranger.get(f"/{room}?after={id}")).status_code == 404
        assert (await stranger.get(f"/{room}")).json()["data"] == []
    job = await stranger.post("/jobs", json=spec_for({"id": owned["datasets"]}))
    assert job.status_code == 404
    line = b'{"prompt": "q", "completion": "a"}\n'
    own = (await stranger.post("/datasets?format=jsonl", content=line)).json()
    for init in (owned["adapters"], "ad_" + "0" * 24):
        answer = await stranger.post("/jobs", json=spec_for(own, init=init))
        assert answer.status_code == 404
        assert answer.json()["error"]["message"] == f"No adapter with id {init!r}."
    asked = {"prompt": "q", "completions": ["a"], "adapter_id": owned["adapters"]}
    scored = await stranger.post("/score", json=asked)
    unknown = await stranger.post("/score", json=asked | {"adapter_id": "ad_" + "0" * 24})
    assert scored.status_code == unknown.status_code == 404
    assert scored.content.replace(owned["adapters"].encode(), b"ad_" + b"0" * 24) == unknown.content
    made = await stranger.post("/generate", json=BODY | {"adapter_id": owned["adapters"]})
    unknown = await stranger.post("/generate", json=BODY | {"adapter_id": "ad_" + "0" * 24})
    assert made.status_code == unknown.status_code == 404
    assert made.content.replace(owned["adapters"].encode(), b"ad_" + b"0" * 24) == unknown.content


async def test_the_owner_sees_all_of_it_and_no_tenant_key_or_path(
    client: httpx.AsyncClient, owned: dict[str, str], services: Services
) -> None:
    tenant_id = services.store.tenants.create("ours").id
    for noun, id in owned.items():
        if noun == "uploads":
            continue  # they are looked at by what becomes of them
        room = ROOMS.get(noun, noun)
        for route in (f"/{room}", f"/{room}/{id}"):
            answer = await client.get(route)
            assert answer.status_code == 200
            assert id in answer.text
            for secret in (tenant_id, "tenants/", str(services.settings.data_dir)):
                assert secret not in answer.text
