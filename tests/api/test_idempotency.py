"""Idempotency-Key: one job and one answer, however often it is asked for, and by whom at once."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.services import Services
from jobs.settings import Settings
from tests.api.making import Woken, spec_for, unhurried
from tests.record import Record

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    base_folder: Path,
    store_url: Callable[[str], str],
) -> Settings:
    """The same over both databases."""
    url = store_url(request.param)
    bases = {"tiny": str(base_folder)}
    return unhurried(data_dir=tmp_path / "data", database_url=url, base_models=bases)


async def test_100_equal_requests_with_one_key_make_one_job_and_get_one_answer(
    client: httpx.AsyncClient, dataset: dict[str, Any], services: Services, record: Record
) -> None:
    services.wakeups = woken = Woken()
    spec, headers = spec_for(dataset), {"idempotency-key": "once"}

    answers = await asyncio.gather(
        *(client.post("/jobs", json=spec, headers=headers) for _ in range(100))
    )
    services.store.jobs.cancel(services.store.tenants.create("ours").id, answers[0].json()["id"])
    late = await client.post("/jobs", json=spec, headers=headers)

    assert {(a.status_code, a.content) for a in [*answers, late]} == {(201, answers[0].content)}
    assert len((await client.get("/jobs")).json()["data"]) == 1
    assert woken.queues == ["default"]
    record("R15", "jobs of 100 equal requests at once", len(woken.queues), exactly=1)
    answers.append(late)
    record("R15", "different answers to them, and to one that came later",
           len({(a.status_code, a.content) for a in answers}), exactly=1)  # fmt: skip


async def test_a_key_used_with_another_body_is_refused(
    client: httpx.AsyncClient, dataset: dict[str, Any], record: Record
) -> None:
    headers = {"idempotency-key": "once"}
    await client.post("/jobs", json=spec_for(dataset), headers=headers)
    answer = await client.post("/jobs", json=spec_for(dataset, seed=1), headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "idempotency_key_reused")
    record("R15", "the same key with another body", answer.status_code, exactly=422)
    assert len((await client.get("/jobs")).json()["data"]) == 1


async def test_a_body_spelled_otherwise_is_the_same_body(
    client: httpx.AsyncClient, dataset: dict[str, Any]
) -> None:
    headers = {"idempotency-key": "once"}
    spec = spec_for(dataset)
    plain = await client.post("/jobs", json=spec, headers=headers)
    spelled = await client.post(
        "/jobs", json={"seed": 0, **dict(reversed(spec.items()))}, headers=headers
    )
    assert plain.content == spelled.content


async def test_a_key_belongs_to_its_tenant(
    client_of: Callable[[str], httpx.AsyncClient], client: httpx.AsyncClient, record: Record
) -> None:
    other = client_of("theirs")
    row = b'{"prompt": "q", "completion": "a"}\n'
    made = []
    for each in (client, other):
        dataset = (await each.post("/datasets?format=jsonl", content=row)).json()
        answer = await each.post(
            "/jobs", json=spec_for(dataset), headers={"idempotency-key": "once"}
        )
        made.append(answer)
    assert [answer.status_code for answer in made] == [201, 201]
    jobs = {answer.json()["id"] for answer in made}
    record("R15", "jobs of two tenants with one key", len(jobs), exactly=2)


@pytest.mark.parametrize("key", ["", "k" * 256, "a b", "é"])
async def test_an_odd_key_is_refused(
    client: httpx.AsyncClient, dataset: dict[str, Any], key: str
) -> None:
    headers = [(b"idempotency-key", key.encode())]
    answer = await client.post("/jobs", json=spec_for(dataset), headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "idempotency-key")


async def test_a_replay_outlives_the_dataset(
    client: httpx.AsyncClient, dataset: dict[str, Any]
) -> None:
    headers = {"idempotency-key": "once"}
    first = await client.post("/jobs", json=spec_for(dataset), headers=headers)
    await client.post(f"/jobs/{first.json()['id']}/cancel")
    assert (await client.delete(f"/datasets/{dataset['id']}")).status_code == 200

    again = await client.post("/jobs", json=spec_for(dataset), headers=headers)

    assert (again.status_code, again.content) == (201, first.content)
