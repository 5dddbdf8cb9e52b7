"""POST /adapters/merge: a job like any other, refused before it queues where it could not run."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from api.services import Services
from tests.api.making import RANK, Woken, peft_files, spec_for, tar_of

pytestmark = pytest.mark.anyio

IMPORT = "/adapters/import?base_model=tiny"


@pytest.fixture
async def pair(client: httpx.AsyncClient) -> list[str]:
    """Two adapters of one base."""
    answers = [await client.post(IMPORT, content=tar_of(peft_files(x))) for x in (0.5, 0.25)]
    return [answer.json()["id"] for answer in answers]


def body(ids: list[str], how: str | None = "cat", **more: Any) -> dict[str, Any]:
    named = [{"id": id, "weight": 0.5 + n} for n, id in enumerate(ids)]
    return {"adapters": named, "combination_type": how} | more


async def test_a_merge_is_a_job_that_waits_for_a_worker(
    client: httpx.AsyncClient, services: Services, pair: list[str]
) -> None:
    services.wakeups = woken = Woken()

    answer = await client.post("/adapters/merge", json=body(pair, name="both", seed=3))

    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert woken.queues == ["default"]
    assert (job["object"], job["status"], job["adapter_id"]) == ("job", "queued", None)
    assert (job["base_model"], job["name"], job["seed"]) == ("tiny", "both", 3)
    assert (job["dataset"], job["init"], job["checkpoint_every"]) == (None, None, None)
    assert job["method"] == {
        "type": "merge",
        "adapters": [{"id": pair[0], "weight": 0.5}, {"id": pair[1], "weight": 1.5}],
        "combination_type": "cat",
        "density": None,
        "svd_rank": None,
        "majority_sign_method": None,
        "into_base": False,
    }
    assert (job["peft"]["r"], job["peft"]["target_modules"]) == (2 * RANK, ["q_proj"])
    assert (await client.get(f"/jobs/{job['id']}")).json() == job
    assert (await client.get("/jobs")).json()["data"] == [job]
    events = (await client.get(f"/jobs/{job['id']}/events")).json()["data"]
    assert [event["message"] for event in events] == ["queued"]
    gone = await client.delete(f"/adapters/{pair[1]}")
    assert (gone.status_code, gone.json()["error"]["code"]) == (409, "in_use")
    cancelled = await client.post(f"/jobs/{job['id']}/cancel")
    assert cancelled.json()["status"] == "cancelled"
    assert (await client.delete(f"/adapters/{pair[1]}")).status_code == 200


async def test_one_adapter_goes_into_its_base_as_a_full_model(
    client: httpx.AsyncClient, pair: list[str]
) -> None:
    asked = {"adapters": [{"id": pair[0]}], "into_base": True}
    job = (await client.post("/adapters/merge", json=asked)).json()
    assert (job["peft"], job["method"]["into_base"]) == ({"type": "full"}, True)


async def test_the_same_key_and_body_is_the_same_merge(
    client: httpx.AsyncClient, dataset: dict[str, Any], pair: list[str]
) -> None:
    headers = {"idempotency-key": "once"}
    first = await client.post("/adapters/merge", json=body(pair), headers=headers)
    again = await client.post(
        "/adapters/merge", json=body(pair, into_base=False, seed=0), headers=headers
    )
    assert (again.status_code, again.content) == (202, first.content)
    for route, other in (("/adapters/merge", body(pair, seed=1)), ("/jobs", spec_for(dataset))):
        answer = await client.post(route, json=other, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (
            422,
            "idempotency_key_reused",
        )
    assert len((await client.get("/jobs")).json()["data"]) == 1


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"combination_type": "ties"}, "body", "invalid_request"),
        ({"combination_type": "mean"}, "combination_type", "invalid_request"),
        ({"density": 2}, "density", "invalid_request"),
        ({"adapters": []}, "adapters", "invalid_request"),
        ({"combination_type": "svd", "svd_rank": 65}, "svd_rank", "rank_too_high"),
        ({"combination_type": "svd", "svd_rank": 9}, "svd_rank", "rank_too_high"),
        ({"base_model": "tiny"}, "base_model", "unknown_field"),
    ],
)
async def test_a_merge_that_could_not_run_is_refused(
    client: httpx.AsyncClient, pair: list[str], changes: dict[str, Any], param: str, code: str
) -> None:
    answer = await client.post("/adapters/merge", json=body(pair) | changes)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (422, code), error
    assert error["param"] == param
    assert (await client.get("/jobs")).json()["data"] == []


async def test_a_foreign_adapter_is_as_unknown_as_a_made_up_one(
    client_of: Callable[[str], httpx.AsyncClient], pair: list[str]
) -> None:
    stranger = client_of("theirs")
    own = (await stranger.post(IMPORT, content=tar_of(peft_files()))).json()["id"]
    foreign = await stranger.post("/adapters/merge", json=body([own, pair[0]]))
    made_up = "ad_" + "0" * 24
    unknown = await stranger.post("/adapters/merge", json=body([own, made_up]))
    assert foreign.status_code == unknown.status_code == 404
    assert foreign.content == unknown.content.replace(made_up.encode(), pair[0].encode())
    odd = await stranger.post("/adapters/merge", json=body([own, "@sft"]))
    assert (odd.status_code, odd.json()["error"]["code"]) == (404, "not_found")
