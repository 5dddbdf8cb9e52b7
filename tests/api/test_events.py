"""A job's events: pages, and a stream that ends with the job and goes on where it was cut."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from api import events
from api.services import Services
from jobs.model import JobError, NewEvent, Progress

pytestmark = pytest.mark.anyio

SSE = {"accept": "text/event-stream"}


@pytest.fixture
async def job(client: httpx.AsyncClient, dataset: dict[str, Any]) -> dict[str, Any]:
    method = {"type": "sft", "max_length": 64}
    spec = {"base_model": "tiny", "dataset": dataset["id"], "method": method}
    made: dict[str, Any] = (await client.post("/jobs", json=spec)).json()
    return made


def parse(text: str) -> list[dict[str, Any]]:
    """The events of a stream; each frame has its number, its type and its data."""
    found = []
    for frame in text.split("\n\n"):
        if frame and not frame.startswith(":"):
            number, kind, data = frame.split("\n")
            event = json.loads(data.removeprefix("data: "))
            assert number == f"id: {event['seq']}"
            assert kind == f"event: {event['type']}"
            found.append(event)
    return found


def run(services: Services, job: dict[str, Any], steps: int) -> None:
    leases = services.store.leases
    assert leases.claim("worker", "default") is not None
    for step in range(1, steps + 1):
        event = NewEvent(type="metrics", message=f"step {step}", data={"step": step})
        leases.record(job["id"], 1, [event])


def fail(services: Services, job: dict[str, Any]) -> None:
    services.store.leases.fail(job["id"], 1, JobError(code="broken", message="It broke."))


async def test_events_are_paged_oldest_first(
    client: httpx.AsyncClient, job: dict[str, Any], services: Services
) -> None:
    run(services, job, 5)
    first = (await client.get(f"/jobs/{job['id']}/events?limit=3")).json()
    rest = (await client.get(f"/jobs/{job['id']}/events?after=3")).json()
    assert [e["seq"] for e in first["data"] + rest["data"]] == [1, 2, 3, 4, 5, 6, 7]
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert set(first["data"][0]) == {
        "object", "seq", "job", "attempt", "created_at", "level", "type", "message", "data",
    }  # fmt: skip


@pytest.mark.parametrize(
    "query", ["after=-1", "after=9223372036854775808", "limit=0", "limit=1001"]
)
async def test_a_page_out_of_range_is_refused(
    client: httpx.AsyncClient, job: dict[str, Any], query: str
) -> None:
    assert (await client.get(f"/jobs/{job['id']}/events?{query}")).status_code == 422


async def test_the_stream_of_a_job_that_has_ended_has_all_and_ends(
    client: httpx.AsyncClient, job: dict[str, Any], services: Services
) -> None:
    run(services, job, 250)
    fail(services, job)
    answer = await client.get(f"/jobs/{job['id']}/events", headers=SSE)
    assert answer.headers["content-type"].startswith("text/event-stream")
    seen = parse(answer.text)
    assert [event["seq"] for event in seen] == list(range(1, 254))
    assert seen[-1]["data"] == {"status": "failed"}


async def test_the_stream_goes_on_after_the_last_event_that_was_seen(
    client: httpx.AsyncClient, job: dict[str, Any], services: Services
) -> None:
    run(services, job, 3)
    fail(services, job)
    for headers, query in (({"last-event-id": "4"}, ""), ({}, "?after=4")):
        answer = await client.get(f"/jobs/{job['id']}/events{query}", headers=SSE | headers)
        assert [event["seq"] for event in parse(answer.text)] == [5, 6]
    past = await client.get(f"/jobs/{job['id']}/events", headers=SSE | {"last-event-id": "6"})
    assert (past.status_code, past.text) == (200, "")


async def test_the_stream_follows_a_job_to_its_end(
    client: httpx.AsyncClient, job: dict[str, Any], services: Services
) -> None:
    following = asyncio.create_task(client.get(f"/jobs/{job['id']}/events", headers=SSE))
    await asyncio.sleep(0.3)
    run(services, job, 2)
    await asyncio.sleep(0.3)
    assert not following.done()
    fail(services, job)
    answer = await asyncio.wait_for(following, 60)
    types = [event["type"] for event in parse(answer.text)]
    assert types == ["state", "state", "metrics", "metrics", "state"]


async def test_a_quiet_stream_says_that_it_is_there(
    services: Services, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(events, "POLL_S", 0.02)
    tenant = services.store.tenants.create("ours")
    stream = events.follow(services.store, tenant.id, job["id"], 0, "key_0")
    first, second = await anext(stream), await asyncio.wait_for(anext(stream), 60)
    assert first.startswith(b"id: 1\n")
    assert second == b": still here\n\n"


async def test_the_stream_of_an_unknown_job_is_a_404(client: httpx.AsyncClient) -> None:
    answer = await client.get(f"/jobs/job_{'0' * 24}/events", headers=SSE)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


async def test_a_loss_that_is_no_number_is_null_and_not_a_fault(
    client: httpx.AsyncClient, job: dict[str, Any], services: Services
) -> None:
    leases = services.store.leases
    assert leases.claim("worker", "default") is not None
    broken = NewEvent(type="metrics", message="step 1", data={"step": 1, "loss": float("nan")})
    leases.record(job["id"], 1, [broken], Progress(step=1, loss=float("inf")))
    fail(services, job)

    page = await client.get(f"/jobs/{job['id']}/events?after=2&limit=1")
    metrics = await client.get(f"/jobs/{job['id']}/metrics")
    stream = await client.get(f"/jobs/{job['id']}/events?after=2", headers=SSE)
    seen = await client.get(f"/jobs/{job['id']}")

    assert page.json()["data"][0]["data"] == {"step": 1, "loss": None}
    assert metrics.json()["data"][0]["data"] == {"step": 1, "loss": None}
    assert parse(stream.text)[0]["data"] == {"step": 1, "loss": None}
    assert seen.json()["progress"]["loss"] is None
