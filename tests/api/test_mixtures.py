"""Mixtures and replay over HTTP: posted, shown, estimated, refused at the field that is wrong."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from engine.estimate import counting

pytestmark = pytest.mark.anyio


async def upload(client: httpx.AsyncClient, what: str, rows: int) -> str:
    lines = [json.dumps({"prompt": f"{what} {i}", "completion": f"it is {i}"}) for i in range(rows)]
    answer = await client.post("/datasets?format=jsonl", content="\n".join(lines))
    assert answer.status_code == 201, answer.text
    found: str = answer.json()["id"]
    return found


@pytest.fixture
async def spec(client: httpx.AsyncClient) -> dict[str, Any]:
    first, second = await upload(client, "say", 60), await upload(client, "tell", 20)
    return {
        "base_model": "tiny",
        "mixture": [{"dataset": first, "weight": 3}, {"dataset": second}],
        "replay": {"dataset": await upload(client, "number", 50)},
        "method": {"type": "sft", "max_length": 64, "per_device_batch_size": 8, "max_steps": None},
    }


async def test_a_job_shows_what_it_mixes_and_replays(
    client: httpx.AsyncClient, spec: dict[str, Any]
) -> None:
    answer = await client.post("/jobs", json=spec, headers={"idempotency-key": "once"})
    job = answer.json()
    assert answer.status_code == 201, answer.text
    assert job["dataset"] is None
    assert [part["weight"] for part in job["mixture"]] == [3.0, 1.0]
    assert job["replay"] == spec["replay"] | {"ratio": 0.1}
    again = await client.post("/jobs", json=spec, headers={"idempotency-key": "once"})
    assert again.json() == job
    other = spec | {"replay": spec["replay"] | {"ratio": 0.2}}
    reused = await client.post("/jobs", json=other, headers={"idempotency-key": "once"})
    assert reused.json()["error"]["code"] == "idempotency_key_reused"
    for id in (spec["mixture"][1]["dataset"], spec["replay"]["dataset"]):
        kept = await client.delete(f"/datasets/{id}")
        assert (kept.status_code, job["id"] in kept.json()["error"]["message"]) == (409, True)


@pytest.mark.parametrize(
    ("field", "given", "message"),
    [
        ("mixture", "ds_1", "mixture: This must be a list."),
        ("mixture", ["ds_1"], "mixture.0: This must be an object."),
        ("mixture", [{"dataset": "ds_1"}] * 65, "mixture: This must have at most 64, not 65."),
        ("replay", "ds_1", "replay: This must be an object."),
        ("metadata", [], "metadata: This must be an object."),
    ],
)
async def test_a_field_of_the_wrong_shape_is_told_in_words_of_json(
    client: httpx.AsyncClient, spec: dict[str, Any], field: str, given: Any, message: str
) -> None:
    error = (await client.post("/jobs", json=spec | {field: given})).json()["error"]
    assert error["message"] == message


@pytest.mark.parametrize("path", ["/jobs", "/jobs/estimate"])
async def test_the_dataset_that_is_too_small_to_hold_out_is_named(
    client: httpx.AsyncClient, spec: dict[str, Any], path: str
) -> None:
    small = await upload(client, "only", 1)
    method = spec["method"] | {"validation_split": 0.1}
    given = spec | {"replay": {"dataset": small}, "method": method}
    error = (await client.post(path, json=given)).json()["error"]
    assert (error["code"], error["param"]) == ("nothing_to_hold_out", "method.validation_split")
    assert error["message"].startswith(f"Dataset {small}: `method.validation_split` of 1 rows")


async def test_large_datasets_are_sampled_as_much_as_one_would_be(
    client: httpx.AsyncClient, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "COUNTED_ROWS", 60)
    said = (await client.post("/jobs/estimate", json=spec)).json()
    # A third of 60 rows, all of 20, a third of 50.
    assert (said["rows"], said["counted_rows"]) == (130, 57)


async def test_an_estimate_counts_all_rows_and_what_packing_saves(
    client: httpx.AsyncClient, spec: dict[str, Any]
) -> None:
    method = spec["method"] | {"num_train_epochs": 2, "validation_split": 0.1}
    plain = (await client.post("/jobs/estimate", json=spec | {"method": method})).json()
    assert plain["dataset"] is None
    # 72 rows of 80 are not held out, and a tenth of that is replayed on top.
    assert (plain["rows"], plain["trained_rows"], plain["held_out_rows"]) == (130, 79, 13)
    assert (plain["steps"], plain["packed_rows"]) == (20, None)

    packing = method | {"packing": True, "max_length": 256}
    packed = (await client.post("/jobs/estimate", json=spec | {"method": packing})).json()
    assert packed["trained_tokens"] == plain["trained_tokens"]
    assert packed["packed_rows"] == -(-packed["tokens"] // 256)
    assert packed["steps"] == 2 * -(-packed["packed_rows"] // 8)
    assert "packed" in packed["basis"]["steps"]

    held = method | {"kl_coef": 0.1}
    near = (await client.post("/jobs/estimate", json=spec | {"method": held})).json()
    assert near["token_passes"] > plain["token_passes"]
    assert near["memory"]["logits"]["bytes"] > plain["memory"]["logits"]["bytes"]
    whole = spec | {"method": held, "peft": {"type": "full"}}
    copied = (await client.post("/jobs/estimate", json=whole)).json()["memory"]
    assert copied["reference"]["bytes"] == copied["weights"]["bytes"]


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"dataset": "ds_1"}, 422, "invalid_request", "dataset"),
        ({"mixture": None}, 422, "invalid_request", "dataset"),
        ({"mixture": [{"dataset": "ds_1", "weight": -1}]}, 422, "invalid_request", None),
        ({"mixture": [{"dataset": "ds_1", "share": 1}]}, 422, "unknown_field", None),
        ({"mixture": [{"dataset": "ds_\0"}]}, 404, "not_found", None),
        ({"replay": {"dataset": "ds_" + "0" * 24}}, 404, "not_found", None),
    ],
)
async def test_a_mixture_that_cannot_be_is_refused(
    client: httpx.AsyncClient,
    spec: dict[str, Any],
    change: dict[str, Any],
    status: int,
    code: str,
    param: str | None,
) -> None:
    answer = await client.post("/jobs", json=spec | change)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert param is None or error["param"] == param


async def test_another_tenant_s_dataset_is_not_found_in_a_mixture(
    client: httpx.AsyncClient,
    client_of: Callable[[str], httpx.AsyncClient],
    spec: dict[str, Any],
) -> None:
    theirs = await upload(client_of("theirs"), "say", 3)
    parts = [*spec["mixture"], {"dataset": theirs}]
    foreign = await client.post("/jobs", json=spec | {"mixture": parts})
    parts = [*spec["mixture"], {"dataset": "ds_" + "0" * 24}]
    unknown = await client.post("/jobs", json=spec | {"mixture": parts})
    assert foreign.status_code == unknown.status_code == 404
    assert foreign.text.replace(theirs, "ds_" + "0" * 24) == unknown.text


async def test_a_pipeline_tells_which_part_of_which_stage_is_wrong(
    client: httpx.AsyncClient, spec: dict[str, Any]
) -> None:
    bad = spec | {"replay": {"dataset": spec["mixture"][0]["dataset"]}, "init": "@first"}
    stages = {"first": spec, "second": bad}
    answer = await client.post("/pipelines", json={"stages": stages})
    problems = answer.json()["error"]["problems"]
    assert [(p["field"], p["code"]) for p in problems] == [
        ("stages.second.replay.dataset", "same_dataset")
    ]
    stages["second"] = spec | {"init": "@first"}
    made = await client.post("/pipelines", json={"stages": stages})
    assert made.status_code == 201, made.text
    assert made.json()["stages"]["second"]["spec"]["replay"]["ratio"] == 0.1
