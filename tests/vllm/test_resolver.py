"""What vLLM does not serve: unknown and deleted ids, damaged files, kinds that it does not know."""

import time
from typing import Any

import httpx
import pytest

from storage.keys import adapter_file, adapter_pointer
from storage.objects import ObjectStore
from storage.opening import open_store
from tests.servers import S3Server
from tests.vllm.service import Two, generate, questions, rows

FORGOTTEN_S = 15.0


@pytest.fixture
def objects(bucket: S3Server) -> ObjectStore:
    return open_store(
        f"s3://{bucket.bucket}/luthier",
        endpoint_url=bucket.endpoint_url,
        access_key=bucket.access_key,
        secret_key=bucket.secret_key,
    )


def ask(client: httpx.Client, adapter_id: str) -> httpx.Response:
    body = {"messages": questions(1)[0], "adapter_id": adapter_id, "temperature": 0}
    return client.post("/generate", json=body)


def ask_directly(services: Two, model: str) -> httpx.Response:
    """vLLM itself, past our API."""
    body = {"model": model, "prompt": [1, 5, 6], "max_tokens": 1}
    return services.direct.post("/v1/completions", json=body)


def listed(services: Two) -> list[str]:
    return [model["id"] for model in services.direct.get("/v1/models").json()["data"]]


def error_of(answer: httpx.Response) -> tuple[int, str]:
    error: dict[str, Any] = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return answer.status_code, error["code"]


def copy_of(services: Two, adapter_id: str) -> str:
    """The same adapter under another id: taken away and brought back."""
    archive = services.ours.get(f"/adapters/{adapter_id}/download").content
    answer = services.ours.post(
        "/adapters/import", params={"base_model": "luthier-tiny"}, content=archive
    )
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def test_an_id_that_nobody_has_is_not_found(services: Two) -> None:
    assert error_of(ask(services.vllm, "ad_" + "0" * 24)) == (404, "not_found")
    assert ask_directly(services, "ad_" + "0" * 24).status_code == 404


@pytest.mark.parametrize("model", ["../../../etc", "/etc", "ad_../../" + "0" * 15, "..", "a" * 500])
def test_a_name_that_is_no_id_reaches_no_path(services: Two, model: str) -> None:
    assert ask_directly(services, model).status_code == 404
    assert listed(services)[0] == "luthier-tiny"
    assert model not in listed(services)


def test_an_adapter_that_was_lost_under_our_feet_is_a_404_in_our_envelope(
    services: Two, adapters: dict[str, str], objects: ObjectStore
) -> None:
    adapter_id = copy_of(services, adapters["small"])
    objects.delete(adapter_pointer(adapter_id))
    assert error_of(ask(services.vllm, adapter_id)) == (404, "model_not_found")


def test_nobody_loads_an_adapter_by_its_path(services: Two) -> None:
    load = {"lora_name": "mine", "lora_path": "/tmp"}
    for path, body in (
        ("/v1/load_lora_adapter", load),
        ("/v1/unload_lora_adapter", {"lora_name": "mine"}),
        ("/adapters", {"name": "mine", "src": "/tmp"}),
    ):
        answer = services.direct.post(path, json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, 403), path
    assert services.direct.delete("/adapters/mine").status_code == 403


def test_a_file_that_was_tampered_with_is_refused_and_never_served(
    services: Two, adapters: dict[str, str], objects: ObjectStore
) -> None:
    adapter_id = copy_of(services, adapters["small"])
    (key,) = (
        info.key
        for info in objects.list("tenants/")
        if info.key.endswith(f"{adapter_id}/adapter_model.safetensors")
    )
    tenant_id = key.split("/")[1]
    assert key == adapter_file(tenant_id, adapter_id, "adapter_model.safetensors")
    whole = objects.get(key)
    objects.put(key, whole[:-1] + bytes([whole[-1] ^ 1]))

    for _ in range(2):
        answer = ask(services.vllm, adapter_id)
        assert error_of(answer) == (422, "adapter_refused")
        assert "adapter_model.safetensors is damaged" in answer.json()["error"]["message"]
    assert tenant_id not in answer.text
    assert adapter_id not in listed(services)
    objects.put(key, whole)
    assert ask(services.vllm, adapter_id).status_code == 200


@pytest.mark.parametrize(
    ("peft", "reason"),
    [
        ({"type": "lora", "r": 4, "use_dora": True}, "is a DoRA"),
        ({"type": "lora", "r": 32}, "rank 32 is above this server's limit 16"),
        ({"type": "prompt_tuning", "num_virtual_tokens": 4}, "is of kind 'prompt_tuning'"),
    ],
)
def test_what_vllm_cannot_serve_is_refused_with_the_reason(
    services: Two, peft: dict[str, Any], reason: str
) -> None:
    adapter_id = services.train(services.upload(rows(0, 60)), peft, max_steps=1, max_length=256)
    answer = ask(services.vllm, adapter_id)
    assert error_of(answer) == (422, "adapter_refused")
    assert reason in answer.json()["error"]["message"]
    assert adapter_id not in listed(services)


def test_a_deleted_adapter_is_gone_at_once_here_and_within_seconds_in_vllm(
    services: Two, adapters: dict[str, str]
) -> None:
    adapter_id = copy_of(services, adapters["small"])
    assert ask(services.vllm, adapter_id).status_code == 200
    assert adapter_id in listed(services)

    assert services.vllm.delete(f"/adapters/{adapter_id}").status_code == 200
    deleted_at = time.monotonic()
    assert error_of(ask(services.vllm, adapter_id)) == (404, "not_found")
    while ask_directly(services, adapter_id).status_code == 200:
        assert time.monotonic() - deleted_at < FORGOTTEN_S
        time.sleep(0.2)
    print(f"vLLM forgot a deleted adapter after {time.monotonic() - deleted_at:.1f} s")
    assert adapter_id not in listed(services)
    # The others are served as before.
    assert generate(services.vllm, messages=questions(1)[0], adapter_id=adapters["small"])["text"]
