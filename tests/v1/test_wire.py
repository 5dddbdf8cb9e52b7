"""What OpenAI's routes ask of the inference server, what that costs, and what comes of nonsense."""

import json
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse

from api.services import Services
from jobs.settings import Settings

# The fixtures of tests/api: pytest finds them by their names here.
from tests.api.conftest import (  # noqa: F401
    anyio_backend,
    app,
    base_folder,
    client_of,
    connected,
    inference,
    key_of,
    services,
)
from tests.api.inference import LOGPROBS, USAGE, Inference
from tests.api.making import unhurried

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("connected")]

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "say"}]}
TEXT = {"model": "tiny", "prompt": "say"}
ROUTES = [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)]
CONTEXT = 256  # of the tests' base


@pytest.fixture(params=["luthier", "vllm"])
def settings(request: pytest.FixtureRequest, tmp_path: Any, base_folder: Any) -> Settings:  # noqa: F811
    named = {"data_dir": tmp_path / "data", "base_models": {"tiny": str(base_folder)}}
    if request.param == "vllm":
        named |= {"generator": "vllm", "vllm_url": "http://vllm.test"}
    return unhurried(**named)


@pytest.fixture
def ours(client_of: Any) -> httpx.AsyncClient:  # noqa: F811
    client: httpx.AsyncClient = client_of("ours")
    return client


async def test_both_generators_are_asked_for_the_same_tokens(
    ours: httpx.AsyncClient,
    inference: Inference,  # noqa: F811
    settings: Settings,
) -> None:
    sampling = {"top_k": 0, "n": 2, "logit_bias": {"5": 1.5}, "stop_token_ids": [9]}
    for (route, body), most in zip(ROUTES, (CONTEXT, 16), strict=True):
        answer = await ours.post(route, json=body | sampling)
        assert answer.status_code == 200, answer.text
        asked = inference.asked[-1]
        assert asked["max_tokens"] == most
        assert (asked["top_k"], asked["n"], asked["logit_bias"]) == (-1, 2, {"5": 1.5})
        assert asked["stop_token_ids"] == [1, 9]
        assert asked.get("ignore_eos", False) == (settings.generator == "vllm")
        assert all(isinstance(token, int) for token in asked["prompt"])
    answer = await ours.post("/v1/completions", json=TEXT | {"ignore_eos": True})
    assert answer.status_code == 200, answer.text
    asked = inference.asked[-1]
    assert (asked["stop_token_ids"], asked["ignore_eos"]) == ([], True)


@pytest.mark.parametrize(("route", "body"), ROUTES)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_costs_the_tokens_that_it_used(
    ours: httpx.AsyncClient,
    services: Services,  # noqa: F811
    inference: Inference,  # noqa: F811
    route: str,
    body: dict[str, Any],
    stream: bool,
) -> None:
    tenant_id = services.store.tenants.find("ours").id
    services.store.quotas.set(tenant_id, {"max_tokens_per_day": 4 * CONTEXT})
    answer = await ours.post(route, json=body | {"stream": stream, "n": 2})
    assert answer.status_code == 200, answer.text
    assert services.store.spending.today(tenant_id) == USAGE["total_tokens"]
    refused = await ours.post(route, json=body | {"n": 8, "max_tokens": 200, "stream": stream})
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "quota_exceeded")
    assert len(inference.asked) == 1


@pytest.mark.parametrize("wrong", [{}, {"tokens": ["a", "b"]}, {"top_logprobs": [5]}])
async def test_log_probs_that_are_none_are_a_bad_gateway(
    ours: httpx.AsyncClient,
    inference: Inference,  # noqa: F811
    wrong: dict[str, Any],
) -> None:
    logprobs = LOGPROBS | wrong if wrong else {"token_logprobs": [-0.5]}
    choice = {"text": "a", "finish_reason": "stop", "logprobs": logprobs}
    inference.answer = JSONResponse({"choices": [choice], "usage": USAGE})
    answer = await ours.post("/v1/chat/completions", json=CHAT | {"logprobs": True})
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "generator_failed")


@pytest.mark.parametrize(("route", "body"), ROUTES)
async def test_an_error_in_the_middle_of_a_stream_is_its_last_event(
    ours: httpx.AsyncClient,
    inference: Inference,  # noqa: F811
    route: str,
    body: dict[str, Any],
) -> None:
    refusal = {"message": "It fell over.", "type": "x", "param": None, "code": "model_diverged"}
    inference.pieces = [{"choices": [{"text": "one"}]}, {"error": refusal}]
    answer = await ours.post(route, json=body | {"stream": True})
    frames = [json.loads(frame.removeprefix("data: ")) for frame in answer.text.split("\n\n")[:-1]]
    assert frames[0]["choices"]
    assert frames[-1]["error"]["code"] == "model_diverged"
    assert not answer.text.endswith("[DONE]\n\n")
