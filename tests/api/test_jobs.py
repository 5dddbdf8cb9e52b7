"""Jobs over HTTP: what is refused before it queues, what clients see, what they may ask for."""

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.services import Services
from jobs.model import NewEvent, Progress
from tests.api.making import Woken, peft_files, spec_for, tar_of

pytestmark = pytest.mark.anyio

IMPORT = "/adapters/import?base_model=tiny"


async def test_a_job_is_queued_with_all_its_choices_spelled_out(
    client: httpx.AsyncClient, dataset: dict[str, Any], services: Services
) -> None:
    services.wakeups = woken = Woken()
    spec = spec_for(dataset, name="first", metadata={"team": "a"}, seed=3)

    answer = await client.post("/jobs", json=spec)

    assert answer.status_code == 201
    job = answer.json()
    assert woken.queues == ["default"]
    assert isinstance(job.pop("created_at"), int)
    method, peft = job.pop("method"), job.pop("peft")
    assert (method["type"], method["max_length"], method["learning_rate"]) == ("sft", 64, 2e-4)
    assert (peft["type"], peft["r"]) == ("lora", 16)
    assert job == {
        "object": "job",
        "id": job["id"],
        "status": "queued",
        "requested": None,
        "base_model": "tiny",
        "dataset": dataset["id"],
        "mixture": None,
        "replay": None,
        "init": None,
        "seed": 3,
        "checkpoint_every": 50,
        "name": "first",
        "metadata": {"team": "a"},
        "progress": {"step": 0, "total_steps": None, "epoch": None, "loss": None},
        "timings": {"queued_s": None, "first_step_s": None, "training_s": None, "total_s": None},
        "attempt": 0,
        "error": None,
        "adapter_id": None,
        "pipeline_id": None,
        "stage": None,
        "estimate": None,
        "actual": None,
        "started_at": None,
        "finished_at": None,
    }
    assert (await client.get(f"/jobs/{job['id']}")).json()["id"] == job["id"]


async def test_a_job_that_could_not_run_is_refused_with_every_reason(
    client: httpx.AsyncClient, dataset: dict[str, Any]
) -> None:
    spec = spec_for(dataset, base_model="gpt-9", peft={"type": "lora", "r": 512})
    answer = await client.post("/jobs", json=spec)
    error = answer.json()["error"]
    assert answer.status_code == 422
    assert {(p["field"], p["code"]) for p in error["problems"]} == {
        ("base_model", "base_model_not_allowed"),
        ("peft.r", "rank_too_high"),
    }
    assert (await client.get("/jobs")).json()["data"] == []


async def test_a_base_model_whose_folder_is_gone_is_refused(
    client: httpx.AsyncClient, dataset: dict[str, Any], services: Services
) -> None:
    services.bases._allowed["gone"] = "/nowhere/at/all"
    answer = await client.post("/jobs", json=spec_for(dataset, base_model="gone"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "base_model_unusable")
    assert "/nowhere" not in answer.text


async def test_rows_of_the_wrong_type_are_refused(client: httpx.AsyncClient) -> None:
    row = b'{"prompt": "q", "chosen": "a", "rejected": "b"}\n'
    made = (await client.post("/datasets?format=jsonl", content=row)).json()
    answer = await client.post("/jobs", json=spec_for(made))
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "wrong_row_type")
    assert answer.json()["error"]["param"] == "dataset"


@pytest.mark.parametrize("dataset_id", ["ds_" + "0" * 24, "x", "ds_\x00", "../..", "\u2028"])
async def test_an_unknown_dataset_is_a_404(client: httpx.AsyncClient, dataset_id: str) -> None:
    answer = await client.post("/jobs", json=spec_for({"id": dataset_id}))
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"method": {"type": "magic"}}, "method.type"),
        ({"method": {"type": "sft", "learning_rate": 7}}, "method.learning_rate"),
        ({"peft": {"type": "lora", "r": 0}}, "peft.r"),
        ({"peft": {"type": "magic"}}, "peft.type"),
        ({"method": {}}, "method.type"),
        ({"seed": -1}, "seed"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k"),
        ({"name": "n" * 129}, "name"),
        ({"name": "n\0"}, "name"),
    ],
)
async def test_a_value_out_of_range_is_refused_at_its_field(
    client: httpx.AsyncClient, dataset: dict[str, Any], change: dict[str, Any], field: str
) -> None:
    answer = await client.post("/jobs", json=spec_for(dataset, **change))
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, field)


async def test_all_problems_of_a_request_are_told_at_once(client: httpx.AsyncClient) -> None:
    answer = await client.post("/jobs", json={"seed": -1, "base_model": "tiny", "sed": 1})
    fields = [problem["field"] for problem in answer.json()["error"]["problems"]]
    assert sorted(fields) == ["dataset", "method", "sed", "seed"]


async def test_a_waiting_job_is_cancelled_at_once_and_only_once(
    client: httpx.AsyncClient, dataset: dict[str, Any]
) -> None:
    job = (await client.post("/jobs", json=spec_for(dataset))).json()
    first = await client.post(f"/jobs/{job['id']}/cancel")
    again = await client.post(f"/jobs/{job['id']}/cancel")
    paused = await client.post(f"/jobs/{job['id']}/pause")
    assert first.json()["status"] == again.json()["status"] == "cancelled"
    assert isinstance(first.json()["finished_at"], int)
    assert (paused.status_code, paused.json()["error"]["code"]) == (409, "conflict")
    assert paused.headers["x-should-retry"] == "false"


async def test_a_paused_job_waits_until_it_is_resumed(
    client: httpx.AsyncClient, dataset: dict[str, Any], services: Services
) -> None:
    services.wakeups = woken = Woken()
    job = (await client.post("/jobs", json=spec_for(dataset))).json()
    paused = await client.post(f"/jobs/{job['id']}/pause")
    assert paused.json()["status"] == "paused"
    assert services.store.leases.claim("worker", "default") is None

    resumed = await client.post(f"/jobs/{job['id']}/resume")

    assert resumed.json()["status"] == "queued"
    assert woken.queues == ["default", "default"]
    again = await client.post(f"/jobs/{job['id']}/resume")
    assert again.status_code == 409


async def test_a_running_job_shows_its_progress_and_what_was_asked_of_it(
    client: httpx.AsyncClient, dataset: dict[str, Any], services: Services
) -> None:
    job = (await client.post("/jobs", json=spec_for(dataset))).json()
    leases = services.store.leases
    assert leases.claim("worker", "default") is not None
    step = NewEvent(type="metrics", message="step 1", data={"step": 1, "loss": 0.5})
    leases.record(job["id"], 1, [step], Progress(step=1, total_steps=9, loss=0.5), first_step=True)

    seen = (await client.post(f"/jobs/{job['id']}/cancel")).json()

    assert (seen["status"], seen["requested"], seen["attempt"]) == ("running", "cancel", 1)
    assert seen["progress"]["total_steps"] == 9
    assert seen["timings"]["first_step_s"] >= 0
    metrics = (await client.get(f"/jobs/{job['id']}/metrics")).json()
    assert [m["data"] for m in metrics["data"]] == [{"step": 1, "loss": 0.5}]
    assert (await client.get(f"/jobs/{job['id']}/checkpoints")).json()["data"] == []


async def test_jobs_are_listed_by_status(
    client: httpx.AsyncClient, dataset: dict[str, Any]
) -> None:
    ids = [(await client.post("/jobs", json=spec_for(dataset))).json()["id"] for _ in range(3)]
    await client.post(f"/jobs/{ids[1]}/cancel")
    queued = (await client.get("/jobs?status=queued")).json()
    assert [job["id"] for job in queued["data"]] == [ids[2], ids[0]]
    assert (await client.get("/jobs?status=lost")).status_code == 422
    page = (await client.get(f"/jobs?limit=1&after={ids[2]}")).json()
    assert ([job["id"] for job in page["data"]], page["has_more"]) == ([ids[1]], True)
    assert (await client.get("/jobs?after=job_" + "0" * 24)).status_code == 404


async def test_a_tenant_may_have_so_many_jobs_waiting(
    client: httpx.AsyncClient, dataset: dict[str, Any], services: Services
) -> None:
    tenant_id = services.store.tenants.find("ours").id
    services.store.quotas.set(tenant_id, {"max_queued_jobs": 2})
    statuses = [(await client.post("/jobs", json=spec_for(dataset))).status_code for _ in range(3)]
    assert statuses == [201, 201, 429]


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        (
            "method",
            {"type": "magic"},
            "'magic' is not among what this server takes: "
            "'sft', 'reward', 'ppo', 'dpo', 'grpo', 'orpo', 'kto'.",
        ),
        (
            "peft",
            {"type": "ia3"},
            "'ia3' is not among what this server takes: 'lora', 'qlora', 'prompt_tuning', "
            "'prefix_tuning', 'full'.",
        ),
        ("peft", {"r": 8}, "This field is needed: it says which one is meant."),
    ],
)
async def test_an_unknown_kind_of_job_is_refused_with_the_known_ones(
    client: httpx.AsyncClient, dataset: dict[str, Any], part: str, value: Any, message: str
) -> None:
    answer = await client.post("/jobs", json=spec_for(dataset) | {part: value})

    error = answer.json()["error"]
    assert answer.status_code == 422
    assert error["message"] == f"{part}.type: {message}"
    assert error["param"] == f"{part}.type"


async def test_a_job_goes_on_with_an_adapter_and_takes_what_it_has(
    client: httpx.AsyncClient, dataset: dict[str, Any]
) -> None:
    adapter = (await client.post(IMPORT, content=tar_of(peft_files()))).json()
    spec = spec_for(dataset, init=adapter["id"])
    headers = {"idempotency-key": "once"}

    answer = await client.post("/jobs", json=spec, headers=headers)

    job = answer.json()
    assert answer.status_code == 201, answer.text
    assert (job["init"], job["peft"]) == (adapter["id"], job["peft"] | adapter["peft"])
    held = await client.delete(f"/adapters/{adapter['id']}")
    assert (held.status_code, held.json()["error"]["code"]) == (409, "in_use")
    spelled = spec | {"peft": {"type": "lora"}}  # says less than it seems: the rest is taken too
    other = await client.post("/jobs", json=spelled, headers=headers)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
    refused = await client.post("/jobs", json=spec | {"peft": {"type": "lora", "r": 9}})
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "peft.r")


@pytest.mark.parametrize("adapter_id", ["ad_" + "0" * 24, "x", "ad_\x00", "../..", "@sft"])
async def test_an_unknown_adapter_to_go_on_with_is_a_404(
    client: httpx.AsyncClient, dataset: dict[str, Any], adapter_id: str
) -> None:
    answer = await client.post("/jobs", json=spec_for(dataset, init=adapter_id))
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


async def test_what_was_left_open_is_shown_as_numbers_and_by_name(
    client: httpx.AsyncClient, dataset: dict[str, Any]
) -> None:
    names = ["learning_rate", "num_train_epochs", "per_device_batch_size", "warmup_ratio"]
    spec = spec_for(
        dataset, method={"type": "sft", "max_length": 64} | dict.fromkeys(names, "auto")
    )

    answer = await client.post("/jobs", json=spec)

    method = answer.json()["method"]
    assert answer.status_code == 201, answer.text
    assert method["auto"] == names
    # A base of width 8; 60 rows.
    assert [method[name] for name in names] == [7.9e-3, 10.0, 2, 0.03]
    shown = (await client.get(f"/jobs/{answer.json()['id']}")).json()
    assert shown["method"] == method
    estimate = (await client.post("/jobs/estimate", json=spec)).json()
    assert (estimate["method"], estimate["steps"]) == (method, 300)


@pytest.mark.parametrize(
    ("method", "field", "message"),
    [
        (
            {"learning_rate": "automatic"},
            "method.learning_rate",
            "Input should be a valid number.",
        ),
        (
            {"learning_rate": 2},
            "method.learning_rate",
            "Input should be less than or equal to 1.",
        ),
        (
            {"max_length": "auto"},
            "method.max_length",
            "Input should be a valid integer.",
        ),
    ],
)
async def test_a_wrong_number_is_told_as_a_number(
    client: httpx.AsyncClient,
    dataset: dict[str, Any],
    method: dict[str, Any],
    field: str,
    message: str,
) -> None:
    answer = await client.post("/jobs", json=spec_for(dataset, method={"type": "sft"} | method))
    error = answer.json()["error"]
    assert (error["param"], error["message"]) == (field, f"{field}: {message}")
    assert len(error["problems"]) == 1


async def test_the_same_key_with_auto_is_the_same_job(
    client: httpx.AsyncClient, dataset: dict[str, Any]
) -> None:
    sft = {"type": "sft", "max_length": 64}
    open_rate = spec_for(dataset, method=sft | {"learning_rate": "auto"})
    headers = {"idempotency-key": "once"}
    first = await client.post("/jobs", json=open_rate, headers=headers)
    again = await client.post("/jobs", json=open_rate, headers=headers)
    assert first.json()["id"] == again.json()["id"]
    plain = spec_for(dataset, method=sft)
    other = await client.post("/jobs", json=plain, headers=headers)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")


async def test_a_base_without_a_generation_prompt_is_told_of_when_the_job_is_posted(
    client: httpx.AsyncClient,
    dataset: dict[str, Any],
    services: Services,
    base_folder: Path,
    tmp_path: Path,
) -> None:
    mute = shutil.copytree(base_folder, tmp_path / "mute")
    config = json.loads((mute / "tokenizer_config.json").read_text())
    config["chat_template"] = config["chat_template"].partition("{% if add_generation_prompt")[0]
    (mute / "tokenizer_config.json").write_text(json.dumps(config))
    services.bases._allowed["mute"] = str(mute)

    job = (await client.post("/jobs", json=spec_for(dataset, base_model="mute"))).json()

    events = (await client.get(f"/jobs/{job['id']}/events")).json()["data"]
    assert [event["level"] for event in events] == ["info", "warn"]
    assert "no generation prompt" in events[1]["message"]
    estimate = await client.post("/jobs/estimate", json=spec_for(dataset, base_model="mute"))
    assert estimate.json()["warnings"] == [events[1]["message"]]
