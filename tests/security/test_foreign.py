"""S1: an id of another tenant is exactly as unknown as one that was made up, wherever it is sent.

The operations are those of the OpenAPI document. One that takes ids in its body needs a line here,
and fails until it has one.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from api.services import Services
from jobs.keys import SCOPES
from jobs.model import Checkpoint, new_id
from jobs.webhooks import EventType
from tests.api.making import publish_adapter, spec_for
from tests.record import Record
from tests.security.conftest import Operation

pytestmark = pytest.mark.anyio

ZEROS = "0" * 24
HI = [{"role": "user", "content": "hi"}]
PPO = {"type": "ppo"}
SLOTS = {"{id}", "{checkpoint_id}"}


def judged(model: str) -> dict[str, Any]:
    return {"type": "score_model", "model": model, "input": HI}


# Bodies with ids in them, by route: what is sent, by the ids that it names. `own` is a dataset of
# the stranger's, so that nothing but the foreign id is wrong.
Bodies = Callable[[dict[str, str], dict[str, Any]], Iterator[dict[str, Any]]]


def jobs_bodies(ids: dict[str, str], own: dict[str, Any]) -> Iterator[dict[str, Any]]:
    mixed = spec_for(own)
    del mixed["dataset"]
    yield spec_for({"id": ids["ds"]})
    yield mixed | {"mixture": [{"dataset": own["id"]}, {"dataset": ids["ds"]}]}
    yield spec_for(own, replay={"dataset": ids["ds"]})
    yield spec_for(own, validation=ids["ds"])
    yield spec_for(own, init=ids["ad"])
    yield spec_for(own, method=PPO | {"reward_model": ids["ad"]})
    yield spec_for(own, method=PPO | {"grader": judged(ids["ad"])})
    parts = {"a": judged(ids["ad"])}
    multi = {"type": "multi", "graders": parts, "calculate_output": "a"}
    yield spec_for(own, method=PPO | {"grader": multi})


def pipeline_bodies(ids: dict[str, str], own: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for spec in jobs_bodies(ids, own):
        yield {"stages": {"a": spec}}
    yield {"stages": {"a": spec_for(own), "b": spec_for({"id": ids["ds"]}, init="@a")}}


def merge_bodies(ids: dict[str, str], own: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield {"adapters": [{"id": ids["ad"]}], "into_base": True}
    pair = [{"id": ids["ad"], "weight": 1.0}, {"id": "ad_" + "1" * 24, "weight": 1.0}]
    yield {"adapters": pair, "combination_type": "linear"}


def generate_bodies(ids: dict[str, str], own: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for asked in ({"prompt": "hi"}, {"messages": HI}, {"messages": HI, "stream": True}):
        yield asked | {"adapter_id": ids["ad"]}
        yield asked | {"adapters": [{"adapter_id": ids["ad"]}]}


def chat_bodies(ids: dict[str, str], own: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for asked in ({"messages": HI}, {"messages": HI, "stream": True}):
        yield asked | {"model": ids["ad"]}
        yield asked | {"model": "tiny", "adapters": [{"adapter_id": ids["ad"]}]}


def completion_bodies(ids: dict[str, str], own: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield {"prompt": "hi", "model": ids["ad"]}
    yield {"prompt": "hi", "model": "tiny", "adapters": [{"adapter_id": ids["ad"]}]}


def score_bodies(ids: dict[str, str], own: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield {"adapter_id": ids["ad"], "prompt": "q", "completions": ["a"]}


def grader_bodies(ids: dict[str, str], own: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield {"grader": judged(ids["ad"]), "model_sample": "x"}


def tuning_bodies(ids: dict[str, str], own: dict[str, Any]) -> Iterator[dict[str, Any]]:
    supervised = {"type": "supervised", "supervised": {"max_length": 64}}
    whole = {"model": "tiny", "training_file": own["id"], "method": supervised}
    yield whole | {"training_file": ids["ds"]}
    yield whole | {"model": ids["ad"]}
    yield whole | {"validation_file": ids["ds"]}
    yield whole | {"replay": {"dataset": ids["ds"]}}
    yield whole | {"method": {"type": "ppo", "ppo": {"reward_model": ids["ad"]}}}
    reinforcement = {"type": "reinforcement", "reinforcement": {"grader": judged(ids["ad"])}}
    yield whole | {"method": reinforcement}


BODIES: dict[str, Bodies | None] = {
    "POST /jobs": jobs_bodies,
    "POST /jobs/estimate": jobs_bodies,
    "POST /pipelines": pipeline_bodies,
    "POST /adapters/merge": merge_bodies,
    "POST /generate": generate_bodies,
    "POST /v1/chat/completions": chat_bodies,
    "POST /v1/completions": completion_bodies,
    "POST /score": score_bodies,
    "POST /graders/run": grader_bodies,
    "POST /graders/validate": None,  # looks at nothing that is stored
    "POST /v1/uploads": None,
    "POST /v1/uploads/{id}/complete": None,  # the id in its path is looked at first
    "POST /v1/fine_tuning/jobs": tuning_bodies,
    "POST /v1/fine_tuning/alpha/graders/run": grader_bodies,
    "POST /v1/fine_tuning/alpha/graders/validate": None,
    "POST /v1/webhook_endpoints": None,  # names nothing that is stored
    "POST /v1/webhook_endpoints/{id}": None,
    "POST /v1/webhook_endpoints/{id}/rotate_secret": None,
    "POST /v1/webhook_endpoints/{id}/test": None,
}


@pytest.fixture
async def ids(
    client: httpx.AsyncClient, dataset: dict[str, Any], services: Services, tmp_path: Path
) -> dict[str, str]:
    """One of everything, of tenant `ours`, by prefix."""
    job = (await client.post("/jobs", json=spec_for(dataset))).json()
    pipeline = (await client.post("/pipelines", json={"stages": {"a": spec_for(dataset)}})).json()
    claim = services.store.leases.claim("worker", "default")
    assert claim is not None
    assert claim.job.id == job["id"]
    checkpoint = Checkpoint(
        id=new_id("ck"),
        job_id=job["id"],
        attempt=1,
        step=1,
        files=(),
        metrics={},
        created_at=0.0,
    )
    services.store.leases.add_checkpoint(checkpoint)
    tenants = services.store.tenants
    wanted = {"bytes": 8, "filename": "a.jsonl", "mime_type": "text/plain", "purpose": "fine-tune"}
    upload = (await client.post("/v1/uploads", json=wanted)).json()
    tenant_id = tenants.find("ours").id
    ends: tuple[EventType, ...] = ("fine_tuning.job.failed",)
    hook = services.store.webhooks.create(tenant_id, "hook", "https://hook.example/", ends)
    deed = services.store.audit.page(tenant_id, limit=1).data[0]
    return {
        "ds": dataset["id"],
        "job": job["id"],
        "pl": pipeline["id"],
        "ad": publish_adapter(services, "ours", tmp_path / "adapter"),
        "ck": checkpoint.id,
        "au": deed.id,
        "up": upload["id"],
        "we": hook.id,
    }


@pytest.fixture
def stranger(app: FastAPI, services: Services) -> httpx.AsyncClient:
    """Another tenant's client, with every scope there is."""
    tenants = services.store.tenants
    key, _ = tenants.issue_key(tenants.create("theirs").id, "test", SCOPES)
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app),
        base_url="http://luthier.test",
        headers={"authorization": f"Bearer {key}"},
    )


KIND = {
    "files": "ds",
    "uploads": "up",
    "fine_tuning": "job",
    "fine_tuning/jobs": "job",
    "models": "ad",
    "webhook_endpoints": "we",
    "datasets": "ds",
    "jobs": "job",
    "pipelines": "pl",
    "adapters": "ad",
    "audit": "au",
}


# What an operation with an id in its path needs besides, so that nothing but the id is wrong.
BESIDE: dict[str, dict[str, Any]] = {
    "POST /v1/uploads/{id}/complete": {"json": {"part_ids": ["pt_" + ZEROS]}},
    "POST /v1/webhook_endpoints/{id}": {"json": {"name": "mine"}},
    "POST /v1/webhook_endpoints/{id}/test": {"json": {"event_type": "fine_tuning.job.failed"}},
}


def path_of(operation: Operation, ids: dict[str, str]) -> str:
    id = ids[KIND[operation.path.removeprefix("/v1").split("/")[1]]]
    path = operation.path.replace("{id}", id).replace("{checkpoint_id}", ids["ck"])
    assert "{" not in path, f"a new kind of id: {path}"
    return path


async def require_alike(
    foreign: httpx.Response, unknown: httpx.Response, ids: dict[str, str], made_up: dict[str, str]
) -> None:
    """Both 404, and equal to the byte but for the id that was sent.

    A pipeline is answered with all that is wrong with its stages, so with a 422 that says so.
    """
    where = f"{foreign.request.method} {foreign.request.url.path} {foreign.request.content!r}"
    expected_status = 422 if foreign.request.url.path == "/pipelines" else 404
    if foreign.request.method == "GET":
        expected_status = 404
    statuses = (foreign.status_code, unknown.status_code)
    assert statuses == (expected_status, expected_status), f"{where}: {foreign.text}"
    assert re.search(r"No \w+ with id", foreign.text), where
    expected = unknown.content
    for prefix, id in made_up.items():
        expected = expected.replace(id.encode(), ids[prefix].encode())
    assert foreign.content == expected, where
    for headers in (foreign.headers, unknown.headers):
        del headers["x-request-id"]
    lengths = [headers.pop("content-length") for headers in (foreign.headers, unknown.headers)]
    assert lengths[0] == lengths[1]
    assert foreign.headers == unknown.headers, where


async def test_a_foreign_id_in_a_path_is_as_unknown_as_a_made_up_one(
    stranger: httpx.AsyncClient, operations: list[Operation], ids: dict[str, str], record: Record
) -> None:
    made_up = {prefix: f"{prefix}_{ZEROS}" for prefix in ids}
    tried = [operation for operation in operations if SLOTS & set(slots(operation.path))]
    for operation in tried:
        answers = [
            await stranger.request(
                operation.method, path_of(operation, some), **BESIDE.get(str(operation), {})
            )
            for some in (ids, made_up)
        ]
        await require_alike(answers[0], answers[1], ids, made_up)
    record("S1", "operations with an id in their path, all 404 alike", len(tried), at_least=31)


def slots(path: str) -> list[str]:
    return [part for part in path.split("/") if part.startswith("{")]


async def test_a_foreign_id_in_a_body_is_as_unknown_as_a_made_up_one(
    stranger: httpx.AsyncClient, operations: list[Operation], ids: dict[str, str], record: Record
) -> None:
    made_up = {prefix: f"{prefix}_{ZEROS}" for prefix in ids}
    line = b'{"prompt": "q", "completion": "a"}\n'
    own = (await stranger.post("/datasets?format=jsonl", content=line)).json()
    with_json = [
        operation
        for operation in operations
        if "application/json" in operation.document.get("requestBody", {}).get("content", {})
    ]
    assert {str(operation) for operation in with_json} == set(BODIES)
    tried = 0
    for operation in with_json:
        bodies = BODIES[str(operation)]
        if bodies is None:
            continue
        for foreign, unknown in zip(bodies(ids, own), bodies(made_up, own), strict=True):
            answers = [
                await stranger.request(operation.method, operation.path, json=body)
                for body in (foreign, unknown)
            ]
            await require_alike(answers[0], answers[1], ids, made_up)
            tried += 1
    record("S1", "bodies with an id of another tenant, all 404 alike", tried, at_least=39)


async def test_no_list_shows_anything_foreign_or_goes_on_from_it(
    stranger: httpx.AsyncClient,
    client: httpx.AsyncClient,
    operations: list[Operation],
    ids: dict[str, str],
    record: Record,
) -> None:
    """A list is what takes a cursor."""
    lists = [
        operation
        for operation in operations
        if any(p["name"] == "after" for p in operation.document.get("parameters", ()))
        and "{" not in operation.path
    ]
    for operation in lists:
        shown = (await stranger.get(f"{operation.path}?limit=100")).text
        assert not [id for id in ids.values() if id in shown], operation
        cursor = ids[KIND[operation.path.removeprefix("/v1").strip("/")]]
        made_up = cursor.partition("_")[0] + "_" + ZEROS
        answers = [await stranger.get(f"{operation.path}?after={id}") for id in (cursor, made_up)]
        await require_alike(answers[0], answers[1], {"x": cursor}, {"x": made_up})
    record("S1", "lists, none with anything foreign", len(lists), at_least=7)


async def test_an_idempotency_key_of_another_tenant_is_a_new_one(
    stranger: httpx.AsyncClient, client: httpx.AsyncClient, dataset: dict[str, Any]
) -> None:
    headers = {"idempotency-key": "shared"}
    first = await client.post("/jobs", json=spec_for(dataset), headers=headers)
    again = await stranger.post("/jobs", json=spec_for(dataset), headers=headers)
    assert (first.status_code, again.status_code) == (201, 404)


async def test_no_answer_says_a_tenant_a_key_or_a_path(
    client: httpx.AsyncClient,
    operations: list[Operation],
    ids: dict[str, str],
    services: Services,
    record: Record,
) -> None:
    tenant_id = services.store.tenants.find("ours").id
    secrets = (tenant_id, "tenants/", str(services.settings.data_dir), "key_hash", "pepper")
    looked = [o for o in operations if o.method == "GET"]
    for operation in looked:
        path = path_of(operation, ids) if slots(operation.path) else operation.path
        answer = await client.get(path)
        assert not [secret for secret in secrets if secret in answer.text], operation
    record("S10", "answers looked through for a tenant, a key or a path", len(looked), at_least=19)
