"""Every JSON body refuses a field that it does not know, wherever in it that is."""

from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from tests.api.making import spec_for

pytestmark = pytest.mark.anyio

NAMED_BY_CLIENTS = ("stages.",)  # any name is one of theirs there

GRADER: dict[str, Any] = {
    "type": "score_model",
    "model": "tiny",
    "input": [{"role": "user", "content": "x"}],
    "sampling_params": {"seed": 1},
}
BODIES: dict[str, dict[str, Any]] = {
    "/jobs": spec_for({"id": "ds_" + "0" * 24}, peft={"type": "lora"}),
    "/jobs/estimate": spec_for({"id": "ds_" + "0" * 24}, peft={"type": "lora"}),
    "/pipelines": {
        "stages": {"a": spec_for({"id": "ds_" + "0" * 24}, peft={"type": "lora"})},
    },
    "/adapters/merge": {
        "adapters": [{"id": "ad_" + "0" * 24, "weight": 1.0}],
        "combination_type": "linear",
    },
    "/generate": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/chat/completions": {
        "model": "tiny",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        "tools": [{"type": "function", "function": {"name": "f"}}],
    },
    "/v1/completions": {"model": "tiny", "prompt": "hi", "adapters": [{"adapter_id": "ad_0"}]},
    "/score": {
        "adapter_id": "ad_" + "0" * 24,
        "messages": [{"role": "user", "content": "hi"}],
        "completions": ["hello"],
    },
    "/v1/fine_tuning/jobs": {
        "model": "tiny",
        "training_file": "ds_" + "0" * 24,
        "method": {
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 1}, "max_length": 64},
        },
        "peft": {"type": "lora"},
    },
    "/v1/fine_tuning/alpha/graders/validate": {"grader": GRADER},
    "/v1/fine_tuning/alpha/graders/run": {"grader": GRADER, "model_sample": "x"},
    "/v1/webhook_endpoints": {
        "name": "a",
        "url": "https://example.com/",
        "event_types": ["fine_tuning.job.failed"],
    },
    "/v1/webhook_endpoints/{id}": {"name": "a"},
    "/v1/webhook_endpoints/{id}/rotate_secret": {},
    "/v1/webhook_endpoints/{id}/test": {"event_type": "fine_tuning.job.failed"},
    "/graders/validate": {"grader": GRADER},
    "/v1/uploads": {
        "bytes": 1,
        "filename": "a.jsonl",
        "mime_type": "text/plain",
        "purpose": "fine-tune",
        "expires_after": {"anchor": "created_at", "seconds": 3600},
    },
    "/v1/uploads/{id}/complete": {"part_ids": ["pt_" + "0" * 24]},
    "/graders/run": {"grader": GRADER, "model_sample": "x"},
}


def places(value: Any, path: str = "") -> list[tuple[str, dict[str, Any]]]:
    """Every object in a body."""
    if isinstance(value, list):
        return [p for i, item in enumerate(value) for p in places(item, f"{path}{i}.")]
    if not isinstance(value, dict):
        return []
    inner = [p for name, item in value.items() for p in places(item, f"{path}{name}.")]
    return [(path, value), *inner]


async def test_every_body_is_covered_here(app: FastAPI) -> None:
    with_json = {
        path
        for path, methods in app.openapi()["paths"].items()
        for operation in methods.values()
        if "application/json" in operation.get("requestBody", {}).get("content", {})
    }
    assert with_json == set(BODIES)


@pytest.mark.parametrize("route", BODIES)
@pytest.mark.parametrize("field", ["tenant_id", "id", "status", "priority", "queue", "__class__"])
async def test_a_field_that_is_not_there_is_refused(
    client: httpx.AsyncClient, route: str, field: str
) -> None:
    for path, place in places(BODIES[route]):
        if path in NAMED_BY_CLIENTS or field in place:
            continue
        place[field] = "x"
        try:
            of_nobody = ("up_" if "uploads" in route else "we_") + "0" * 24
            answer = await client.post(route.replace("{id}", of_nobody), json=BODIES[route])
        finally:
            del place[field]
        error = answer.json()["error"]
        assert answer.status_code == 422, path
        assert (error["code"], error["param"]) == ("unknown_field", f"{path}{field}")


async def test_a_field_of_an_upload_form_that_is_not_there_is_refused(
    client: httpx.AsyncClient,
) -> None:
    answer = await client.post(
        "/datasets", data={"tenant_id": "tn_1"}, files={"file": ("a.jsonl", b"{}")}
    )
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "tenant_id"
