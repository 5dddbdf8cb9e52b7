"""POST /jobs/estimate: checked like a job, counted from real tokens, and nothing is kept."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from api.services import Services
from engine.estimate import counting
from engine.estimate.model import Actual, Estimate
from jobs.model import Adapter, new_id
from tests.api.making import spec_for

pytestmark = pytest.mark.anyio


async def test_a_job_is_estimated_and_nothing_is_kept(
    client: httpx.AsyncClient,
    dataset: dict[str, Any],
    services: Services,
    stored: Callable[[], list[str]],
) -> None:
    before = stored()
    method = {"type": "sft", "max_length": 64, "num_train_epochs": 2, "per_device_batch_size": 8}
    spec = spec_for(dataset, method=method, peft={"type": "lora", "r": 2})

    answer = await client.post("/jobs/estimate", json=spec)

    said = answer.json()
    assert answer.status_code == 200, answer.text
    assert (said["rows"], said["counted_rows"], said["trained_rows"]) == (60, 60, 60)
    assert said["steps"] == 16
    assert said["trainable_parameters"] == 4 * 2 * (8 + 8)
    assert said["trained_tokens"] == 60 * said["trained_tokens"] // 60 > 0
    assert said["method"]["learning_rate"] == 2e-4
    memory = {name: part["bytes"] for name, part in said["memory"].items()}
    assert memory.keys() >= {"weights", "gradients", "optimizer", "activations", "logits"}
    assert memory["optimizer"] == 2 * 4 * said["trainable_parameters"]
    assert said["peak_memory_bytes"] == sum(memory.values())
    assert all(part["basis"] for part in said["memory"].values())
    assert (said["seconds_from"], said["seconds"] > 0) == ("model", True)
    assert "GFLOP" in said["basis"]["seconds"]
    assert (await client.get("/jobs")).json()["data"] == []
    assert stored() == before


async def test_gradient_checkpointing_takes_less_memory(
    client: httpx.AsyncClient, dataset: dict[str, Any]
) -> None:
    def spec(on: bool) -> dict[str, Any]:
        method = {"type": "sft", "max_length": 64, "gradient_checkpointing": on}
        return spec_for(dataset, method=method)

    plain = (await client.post("/jobs/estimate", json=spec(False))).json()
    saving = (await client.post("/jobs/estimate", json=spec(True))).json()
    assert "in full" in saving["memory"]["activations"]["basis"]
    assert saving["token_passes"] > plain["token_passes"]


async def test_it_is_refused_as_the_job_would_be(
    client: httpx.AsyncClient,
    client_of: Callable[[str], httpx.AsyncClient],
    dataset: dict[str, Any],
) -> None:
    bad = spec_for(dataset, peft={"type": "lora", "r": 512})
    answer = await client.post("/jobs/estimate", json=bad)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "rank_too_high")
    foreign = await client_of("theirs").post("/jobs/estimate", json=spec_for(dataset))
    assert (foreign.status_code, foreign.json()["error"]["code"]) == (404, "not_found")
    odd = await client.post("/jobs/estimate", json=spec_for({"id": "ds_\0"}))
    assert odd.status_code == 404


async def test_rows_without_any_loss_are_an_error_with_its_field(
    client: httpx.AsyncClient, dataset: dict[str, Any]
) -> None:
    spec = spec_for(dataset, method={"type": "sft", "max_length": 8})
    error = (await client.post("/jobs/estimate", json=spec)).json()["error"]
    assert (error["code"], error["param"]) == ("nothing_to_train", "method.max_length")


async def test_a_large_dataset_is_sampled_and_says_so(
    client: httpx.AsyncClient, dataset: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "COUNTED_ROWS", 20)
    whole = spec_for(dataset, method={"type": "sft", "max_length": 64, "num_train_epochs": 1})
    said = (await client.post("/jobs/estimate", json=whole)).json()
    assert (said["rows"], said["counted_rows"], said["trained_rows"]) == (60, 20, 60)
    assert said["steps"] == 8
    assert said["basis"]["tokens"].startswith("one row in 3")


def adapter_of(services: Services, job_id: str) -> Adapter:
    with services.store.database.read() as connection:
        tenant_id = connection.exec_driver_sql("select tenant_id from jobs").scalar_one()
    return Adapter(
        id=new_id("ad"),
        tenant_id=tenant_id,
        name="a",
        kind="lora",
        base_model="tiny",
        job_id=job_id,
        size_bytes=1,
        manifest={},
        created_at=0.0,
    )


async def test_earlier_jobs_on_the_same_workers_set_the_time_right(
    client: httpx.AsyncClient, dataset: dict[str, Any], services: Services
) -> None:
    first = (await client.post("/jobs/estimate", json=spec_for(dataset))).json()
    job = (await client.post("/jobs", json=spec_for(dataset))).json()
    leases = services.store.leases
    assert leases.claim("worker", "default") is not None
    figures = {name: first[name] for name in Estimate.model_fields}
    leases.note_estimate(job["id"], 1, Estimate.model_validate(figures))
    took = 2 * first["modelled_seconds"]
    actual = Actual(steps=first["steps"], seconds=took, peak_memory_bytes=7)
    leases.succeed(job["id"], 1, adapter_of(services, job["id"]), took, actual)

    again = (await client.post("/jobs/estimate", json=spec_for(dataset))).json()
    shown = (await client.get(f"/jobs/{job['id']}")).json()

    assert again["seconds"] == pytest.approx(took)
    assert again["seconds_from"] == "earlier_jobs"
    assert "1 earlier job on this base" in again["basis"]["seconds"]
    assert shown["estimate"]["steps"] == shown["actual"]["steps"] == first["steps"]
    assert shown["actual"]["peak_memory_bytes"] == 7
