"""Pipelines over HTTP: posted whole or not at all, shown stage by stage, cancelled as one."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from api.services import Services
from jobs.model import Adapter, JobError
from tests.api.making import Woken, peft_files, spec_for, tar_of

pytestmark = pytest.mark.anyio

SMALL = {"type": "lora", "r": 2, "target_modules": ["q_proj"]}


def two_stages(dataset: dict[str, Any], **changes: Any) -> dict[str, Any]:
    first, then = spec_for(dataset, peft=SMALL), spec_for(dataset, init="@first")
    return {"stages": {"first": first, "then": then | changes}}


def succeed(services: Services, job_id: str) -> str:
    """Run the queued job, as a worker would; its adapter."""
    claim = services.store.leases.claim("worker", "default")
    assert claim is not None
    assert claim.job.id == job_id
    adapter = Adapter(
        id=f"ad_{job_id.removeprefix('job_')}",
        tenant_id=claim.job.tenant_id,
        name="made",
        kind="lora",
        base_model="tiny",
        job_id=job_id,
        size_bytes=1,
        manifest={},
        created_at=0.0,
    )
    services.store.leases.succeed(job_id, claim.job.attempt, adapter, 1.0)
    assert claim.job.pipeline_id is not None
    services.store.pipelines.move(claim.job.pipeline_id)
    return adapter.id


async def test_a_pipeline_runs_stage_by_stage_and_shows_each(
    client: httpx.AsyncClient, dataset: dict[str, Any], services: Services
) -> None:
    services.wakeups = woken = Woken()
    body = two_stages(dataset) | {"name": "both", "metadata": {"team": "a"}}

    answer = await client.post("/pipelines", json=body)

    made = answer.json()
    assert answer.status_code == 201, answer.text
    assert woken.queues == ["default"]
    assert (made["object"], made["status"], made["requested"]) == ("pipeline", "queued", None)
    assert (made["name"], made["metadata"], list(made["stages"])) == (
        "both",
        {"team": "a"},
        ["first", "then"],
    )
    then = made["stages"]["then"]
    spec = then.pop("spec")
    assert (spec["init"], spec["peft"]["r"]) == ("@first", 2)
    assert then == {
        "state": "waiting",
        "needs": ["first"],
        "job_id": None,
        "adapter_id": None,
        "error": None,
        "finished_at": None,
    }

    first = made["stages"]["first"]["job_id"]
    adapter_id = succeed(services, first)
    shown = (await client.get(f"/pipelines/{made['id']}")).json()
    assert (shown["status"], shown["stages"]["first"]["adapter_id"]) == ("running", adapter_id)
    job = (await client.get(f"/jobs/{shown['stages']['then']['job_id']}")).json()
    assert (job["pipeline_id"], job["stage"], job["init"]) == (made["id"], "then", adapter_id)
    held = await client.delete(f"/adapters/{adapter_id}")
    assert (held.status_code, held.json()["error"]["code"]) == (409, "in_use")

    succeed(services, job["id"])
    done = (await client.get(f"/pipelines/{made['id']}")).json()
    assert (done["status"], done["finished_at"]) == (
        "succeeded",
        done["stages"]["then"]["finished_at"],
    )
    assert (await client.get("/pipelines")).json()["data"] == [done]


async def test_a_pipeline_that_could_not_run_is_refused_whole_with_every_reason(
    client: httpx.AsyncClient, dataset: dict[str, Any], services: Services
) -> None:
    services.wakeups = woken = Woken()
    adapter = await client.post("/adapters/import?base_model=tiny", content=tar_of(peft_files()))
    row = b'{"prompt": "q", "chosen": "a", "rejected": "b"}\n'
    pairs = (await client.post("/datasets?format=jsonl", content=row)).json()
    stages = {
        "fine": spec_for(dataset),
        "rows": spec_for(pairs),
        "gone": spec_for({"id": "ds_" + "0" * 24}),
        "lost": spec_for(dataset, init="@nobody"),
        "self": spec_for(dataset, init="@self"),
        "a": spec_for(dataset, init="@b"),
        "b": spec_for(dataset, init="@a"),
        "wide": spec_for(dataset, init=adapter.json()["id"], peft={"type": "lora", "r": 7}),
    }

    answer = await client.post("/pipelines", json={"stages": stages})

    error = answer.json()["error"]
    assert answer.status_code == 422
    found = {(p["field"], p["code"]) for p in error["problems"]}
    circle = found & {("stages.a.init", "cycle"), ("stages.b.init", "cycle")}
    assert len(circle) == 1
    assert found - circle == {
        ("stages.rows.dataset", "wrong_row_type"),
        ("stages.gone.dataset", "not_found"),
        ("stages.lost.init", "unknown_stage"),
        ("stages.self.init", "self_reference"),
        ("stages.wide.peft.r", "peft_differs"),
    }
    assert (await client.get("/pipelines")).json()["data"] == []
    assert (await client.get("/jobs")).json()["data"] == []
    assert woken.queues == []


@pytest.mark.parametrize(
    ("stages", "field"),
    [
        ({}, "stages"),
        ({"Big": {}}, "stages.Big"),
        ({"a": {"method": {"type": "sft", "learning_rate": 7}}}, "stages.a.method.learning_rate"),
        ({"a": 3}, "stages.a"),
        ({"sft": {"peft": {"type": "lora", "r": 0}}}, "stages.sft.peft.r"),
    ],
)
async def test_a_stage_that_is_no_job_is_refused_at_its_field(
    client: httpx.AsyncClient, dataset: dict[str, Any], stages: dict[str, Any], field: str
) -> None:
    whole = {
        name: spec_for(dataset) | stage if isinstance(stage, dict) else stage
        for name, stage in stages.items()
    }
    answer = await client.post("/pipelines", json={"stages": whole})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, field)


async def test_a_failed_stage_is_told_where_it_stops_others(
    client: httpx.AsyncClient, dataset: dict[str, Any], services: Services
) -> None:
    made = (await client.post("/pipelines", json=two_stages(dataset))).json()
    claim = services.store.leases.claim("worker", "default")
    assert claim is not None
    error = JobError(code="diverged", message="loss is nan; lower `method.learning_rate`.")
    services.store.leases.fail(claim.job.id, claim.job.attempt, error)
    services.store.pipelines.move(made["id"])

    shown = (await client.get(f"/pipelines/{made['id']}")).json()

    first, then = shown["stages"]["first"], shown["stages"]["then"]
    assert (shown["status"], first["state"], then["state"]) == ("failed", "failed", "skipped")
    assert first["error"]["code"] == "diverged"
    assert then["error"] == {
        "code": "stage_failed",
        "message": f"Stage 'first' failed (diverged): {error.message}",
        "param": "stages.first",
    }


async def test_a_pipeline_is_cancelled_once_and_its_jobs_with_it(
    client: httpx.AsyncClient, dataset: dict[str, Any]
) -> None:
    made = (await client.post("/pipelines", json=two_stages(dataset))).json()
    first = await client.post(f"/pipelines/{made['id']}/cancel")
    again = await client.post(f"/pipelines/{made['id']}/cancel")
    assert first.json() == again.json()
    assert first.json()["status"] == "cancelled"
    assert {s["state"] for s in first.json()["stages"].values()} == {"cancelled"}
    job = (await client.get(f"/jobs/{made['stages']['first']['job_id']}")).json()
    assert job["status"] == "cancelled"


async def test_a_repeated_request_is_answered_as_the_first(
    client: httpx.AsyncClient, dataset: dict[str, Any], services: Services
) -> None:
    services.wakeups = woken = Woken()
    headers, body = {"idempotency-key": "once"}, two_stages(dataset)
    first = await client.post("/pipelines", json=body, headers=headers)
    await client.post(f"/pipelines/{first.json()['id']}/cancel")
    again = await client.post("/pipelines", json=body, headers=headers)
    assert (again.status_code, again.content) == (201, first.content)
    assert woken.queues == ["default"]
    other = await client.post("/pipelines", json=two_stages(dataset, seed=2), headers=headers)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
    job = await client.post("/jobs", json=spec_for(dataset), headers=headers)
    assert (job.status_code, job.json()["error"]["code"]) == (422, "idempotency_key_reused")


async def test_what_a_stage_names_is_the_tenants_own(
    client: httpx.AsyncClient,
    client_of: Callable[[str], httpx.AsyncClient],
    dataset: dict[str, Any],
) -> None:
    stranger = client_of("theirs")
    adapter = await client.post("/adapters/import?base_model=tiny", content=tar_of(peft_files()))
    unknown_ad, unknown_ds = "ad_" + "0" * 24, "ds_" + "0" * 24
    answers = []
    for ad, ds in ((adapter.json()["id"], dataset["id"]), (unknown_ad, unknown_ds)):
        body = {"stages": {"a": spec_for({"id": ds}, init=ad)}}
        answer = await stranger.post("/pipelines", json=body)
        assert answer.status_code == 422
        answers.append(answer.text.replace(ad, unknown_ad).replace(ds, unknown_ds))
    assert answers[0] == answers[1]
    assert unknown_ad in answers[0]


async def test_a_tenant_may_have_so_many_stages_waiting(
    client: httpx.AsyncClient, dataset: dict[str, Any], services: Services
) -> None:
    tenant_id = services.store.tenants.find("ours").id
    services.store.quotas.set(tenant_id, {"max_queued_jobs": 3})
    statuses = [
        (await client.post("/pipelines", json=two_stages(dataset))).status_code for _ in range(2)
    ]
    assert statuses == [201, 429]


async def test_a_stage_may_leave_numbers_open_too(
    client: httpx.AsyncClient, dataset: dict[str, Any]
) -> None:
    method = {"type": "sft", "max_length": 64, "learning_rate": "auto"}
    stages = {"first": spec_for(dataset, method=method)}
    stages["second"] = spec_for(dataset, method=method, init="@first")

    made = (await client.post("/pipelines", json={"stages": stages})).json()

    for stage in made["stages"].values():
        assert stage["spec"]["method"]["learning_rate"] == 7.9e-3
        assert stage["spec"]["method"]["auto"] == ["learning_rate"]
