"""POST /generate through vLLM: what is said otherwise to it, and what its refusals become."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse

from api.services import Services, open_services
from jobs.settings import Settings
from tests.api.inference import Inference
from tests.api.making import publish_adapter, spec_for

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("connected")]

HELLO = {"messages": [{"role": "user", "content": "say"}]}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    changed = {"generator": "vllm", "vllm_url": "http://vllm.test", "vllm_max_lora_rank": 8}
    return settings.model_copy(update=changed)


def vllm_error(status: int, message: str, param: str | None = None) -> JSONResponse:
    """As vLLM 0.32 writes it."""
    kind = "NotFoundError" if status == 404 else "BadRequestError"
    error = {"message": message, "type": kind, "param": param, "code": status}
    return JSONResponse({"error": error}, status)


async def test_vllm_is_told_all_that_it_would_take_from_elsewhere(
    client: httpx.AsyncClient, inference: Inference, services: Services, tmp_path: Path
) -> None:
    adapter_id = publish_adapter(services, "ours", tmp_path / "a", stop_token_ids=[1, 4])
    answer = await client.post("/generate", json=HELLO | {"adapter_id": adapter_id})
    assert answer.status_code == 200, answer.text
    (asked,) = inference.asked
    assert all(isinstance(token, int) for token in asked.pop("prompt"))
    assert asked.pop("cache_salt")
    assert asked.pop("user").startswith("tn_")
    assert asked == {
        "model": adapter_id,
        "max_tokens": 256,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": [1, 4],
        "ignore_eos": True,
    }


async def test_what_a_client_sets_wins_and_tenants_share_no_cache(
    client_of: Any, inference: Inference
) -> None:
    for tenant in ("ours", "ours", "theirs"):
        more = {"top_k": 3, "seed": 7, "max_tokens": 1000}
        answer = await client_of(tenant).post("/generate", json=HELLO | more)
        assert answer.status_code == 200, answer.text
    assert {(asked["top_k"], asked["seed"]) for asked in inference.asked} == {(3, 7)}
    assert {asked["max_tokens"] for asked in inference.asked} == {256}  # the base's context
    first, again, other = (asked["cache_salt"] for asked in inference.asked)
    assert first == again != other


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("said", "status", "code", "param"),
    [
        (vllm_error(404, "The model `x` does not exist.", "model"), 404, "model_not_found",
         "model"),
        (vllm_error(400, "too long", "input_tokens"), 400, "context_length_exceeded", "prompt"),
        (vllm_error(400, "Token id 9 is out of vocabulary"), 400, "invalid_request", None),
        (vllm_error(422, "adapter x is damaged"), 422, "adapter_refused", None),
        (vllm_error(503, "storage"), 503, "generator_unavailable", None),
        (vllm_error(500, "engine"), 502, "generator_failed", None),
    ],
)  # fmt: skip
async def test_its_refusals_come_in_our_envelope(
    client: httpx.AsyncClient,
    inference: Inference,
    said: JSONResponse,
    status: int,
    code: str,
    param: str | None,
    stream: bool,
) -> None:
    inference.answer = said
    answer = await client.post("/generate", json=HELLO | {"stream": stream})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    assert error["message"] in said.body.decode()


async def test_an_adapter_that_does_not_exist_is_not_even_asked_for(
    client: httpx.AsyncClient, inference: Inference
) -> None:
    answer = await client.post("/generate", json=HELLO | {"adapter_id": "ad_" + "0" * 24})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert inference.asked == []


async def test_scores_are_refused_with_the_reason(
    client: httpx.AsyncClient, inference: Inference, services: Services, tmp_path: Path
) -> None:
    adapter_id = publish_adapter(services, "ours", tmp_path / "a", kind="reward")
    body = {"adapter_id": adapter_id, "prompt": "say", "completions": ["one"]}
    answer = await client.post("/score", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "generator_cannot_score")
    turns = [{"role": "user", "content": "say"}, {"role": "assistant", "content": "one"}]
    grader = {"type": "score_model", "model": adapter_id, "input": turns}
    judged = await client.post("/graders/run", json={"grader": grader, "model_sample": "one"})
    assert "vLLM" in judged.json()["error"]["message"]
    assert inference.asked == []


async def test_a_job_that_it_could_not_serve_is_refused_and_a_reward_model_warned_of(
    client: httpx.AsyncClient, dataset: dict[str, Any]
) -> None:
    body = spec_for(dataset, peft={"type": "lora", "r": 9, "use_dora": True})
    refused = await client.post("/jobs", json=body)
    assert refused.status_code == 422
    found = {(each["field"], each["code"]) for each in refused.json()["error"]["problems"]}
    code = "generator_cannot_serve"
    assert found == {("peft.r", code), ("peft.use_dora", code)}
    estimate = await client.post("/jobs/estimate", json=body)
    assert estimate.json()["error"]["code"] == code

    rows = '{"prompt": "say", "chosen": "it is 7", "rejected": "no"}\n' * 60
    pairs = (await client.post("/datasets?name=pairs.jsonl", content=rows)).json()
    method = {"type": "reward", "max_length": 64}
    taken = await client.post("/jobs", json=spec_for(pairs, method=method))
    assert taken.status_code == 201, taken.text
    events = (await client.get(f"/jobs/{taken.json()['id']}/events")).json()["data"]
    assert any("POST /score is refused" in event["message"] for event in events)


async def test_its_key_is_sent_to_vllm_alone(settings: Settings) -> None:
    keyed = settings.model_copy(update={"vllm_api_key": "secret"})
    async for http in _http_of(Settings.model_validate(keyed.model_dump())):
        assert http.headers["authorization"] == "Bearer secret"
    ours = keyed.model_copy(update={"generator": "luthier"})
    async for http in _http_of(Settings.model_validate(ours.model_dump())):
        assert "authorization" not in http.headers


async def _http_of(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    services = open_services(settings)
    yield services.http
    await services.close()
