"""POST /score: answers as the reward model's training read them, and its scalars for them."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.responses import JSONResponse, Response

from api import scoring
from api.rendering import renderer_of
from api.services import Services
from engine.rows import Message, Preference
from engine.train.examples import preferences
from tests.api.inference import USAGE, Inference
from tests.api.making import publish_adapter
from tests.api.serving import serve, wait_until
from tests.api.test_generate import GERMAN, text_of

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("connected")]

ANSWERS = ["it is 7", "no"]


@pytest.fixture
def reward_id(services: Services, tmp_path: Path) -> str:
    return publish_adapter(services, "ours", tmp_path / "reward", kind="reward")


async def test_each_answer_gets_its_score_in_order(
    client: httpx.AsyncClient, inference: Inference, services: Services, reward_id: str
) -> None:
    body = {"adapter_id": reward_id, "prompt": "say", "completions": ANSWERS}
    answer = await client.post("/score", json=body)

    assert answer.status_code == 200, answer.text
    (asked,) = inference.asked
    assert asked.keys() == {"model", "inputs"}
    assert asked["model"] == reward_id
    lengths = [len(ids) for ids in asked["inputs"]]
    assert lengths[0] != lengths[1]
    assert answer.json() == {
        "object": "score",
        "adapter_id": reward_id,
        "data": [{"index": i, "score": length / 4} for i, length in enumerate(lengths)],
        "usage": USAGE,
    }
    assert [text_of(services, ids) for ids in asked["inputs"]] == [
        f"<|user|>say<|end|><|assistant|>{text}<|end|>" for text in ANSWERS
    ]


async def test_the_tokens_are_those_of_training(
    client: httpx.AsyncClient, inference: Inference, services: Services, tmp_path: Path
) -> None:
    closed = (  # with something behind the answer, which training leaves out
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    adapter_id = publish_adapter(
        services, "ours", tmp_path / "a", kind="reward", chat_template=closed
    )
    turns: list[dict[str, Any]] = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "say"},
        {"role": "assistant", "content": "what?"},
        {"role": "user", "content": "the number"},
    ]
    body = {"adapter_id": adapter_id, "messages": turns, "completions": ANSWERS}
    answer = await client.post("/score", json=body)
    assert answer.status_code == 200, answer.text

    contract = scoring.contract_of(
        services.store.adapters.get(services.store.tenants.create("ours").id, adapter_id)
    )
    renderer = renderer_of(services.bases.find("tiny"), contract)
    chosen, rejected = ((Message(role="assistant", content=text),) for text in ANSWERS)
    row = Preference(
        prompt=tuple(Message.model_validate(turn) for turn in turns),
        chosen=chosen,
        rejected=rejected,
    )
    (pair,) = preferences([row], renderer, 1000, whole=True).examples
    (asked,) = inference.asked
    assert asked["inputs"] == [pair.chosen.input_ids, pair.rejected.input_ids]
    assert text_of(services, asked["inputs"][1]).endswith(
        "the number<|end|>\n<|assistant|>no<|end|>"
    )


async def test_an_adapter_that_generates_does_not_score(
    client: httpx.AsyncClient, inference: Inference, services: Services, tmp_path: Path
) -> None:
    adapter_id = publish_adapter(services, "ours", tmp_path / "a")
    body = {"adapter_id": adapter_id, "prompt": "say", "completions": ANSWERS}
    answer = await client.post("/score", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (422, "adapter_cannot_score")
    assert error["param"] == "adapter_id"
    assert "method `reward`" in error["message"]
    assert inference.asked == []


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": None}, "body"),
        ({"messages": [{"role": "user", "content": "x"}]}, "body"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": None, "messages": []}, "messages"),
        ({"prompt": None, "messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        ({"prompt": None, "messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"completions": []}, "completions"),
        ({"completions": "it is 7"}, "completions"),
        ({"completions": ["it is 7", " \n"]}, "completions.1"),
        ({"completions": ["x"] * 65}, "completions"),
        ({"adapter_id": None}, "adapter_id"),
        ({"base_model": "tiny"}, "base_model"),
    ],
)
async def test_what_cannot_be_asked_is_refused_at_its_field(
    client: httpx.AsyncClient,
    inference: Inference,
    reward_id: str,
    change: dict[str, Any],
    param: str,
) -> None:
    body = {"adapter_id": reward_id, "prompt": "say", "completions": ANSWERS}
    answer = await client.post("/score", json=body | change)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, param)
    assert inference.asked == []


async def test_an_answer_that_the_template_leaves_out_has_no_score(
    client: httpx.AsyncClient, inference: Inference, services: Services, tmp_path: Path
) -> None:
    silent = GERMAN.replace("{% for m in messages %}", "{% for m in messages[:1] %}")
    adapter_id = publish_adapter(
        services, "ours", tmp_path / "a", kind="reward", chat_template=silent
    )
    body = {"adapter_id": adapter_id, "prompt": "say", "completions": ANSWERS}
    answer = await client.post("/score", json=body)
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "completions.0"
    assert inference.asked == []


async def test_more_tokens_than_a_request_may_have_are_refused_before_the_last(
    client: httpx.AsyncClient,
    inference: Inference,
    reward_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scoring, "MAX_TOKENS", 100)
    body = {"adapter_id": reward_id, "prompt": "say" * 20, "completions": ANSWERS * 3}
    answer = await client.post("/score", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (422, "completions")
    assert "100 tokens" in error["message"]
    assert inference.asked == []


async def test_nobody_scores_without_a_key(nobody: httpx.AsyncClient, reward_id: str) -> None:
    body = {"adapter_id": reward_id, "prompt": "say", "completions": ANSWERS}
    assert (await nobody.post("/score", json=body)).status_code == 401


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("model", "adapter_id"), ("inputs.1", "completions.1"), ("inputs", "completions")],
)
async def test_a_refusal_of_the_inference_server_is_told_at_our_field(
    client: httpx.AsyncClient, inference: Inference, reward_id: str, theirs: str, ours: str
) -> None:
    refusal = {"message": "no", "type": "x", "param": theirs, "code": "adapter_mismatch"}
    inference.answer = JSONResponse({"error": refusal}, 422)
    body = {"adapter_id": reward_id, "prompt": "say", "completions": ANSWERS}
    answer = await client.post("/score", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (422, "adapter_mismatch")
    assert error["param"] == ours


@pytest.mark.parametrize(
    "nonsense",
    [
        Response("hello"),
        JSONResponse({"data": [], "usage": USAGE}),
        JSONResponse({"data": [{"index": 1, "score": 1.0}] * 2, "usage": USAGE}),
        JSONResponse({"data": [{"index": 0, "score": 1.0}, {"index": 1}], "usage": USAGE}),
        Response('{"data": [{"index": 0, "score": NaN}, {"index": 1, "score": 1}], "usage": {}}'),
    ],
)
async def test_nonsense_of_the_inference_server_is_a_bad_gateway(
    client: httpx.AsyncClient, inference: Inference, reward_id: str, nonsense: Response
) -> None:
    inference.answer = nonsense
    body = {"adapter_id": reward_id, "prompt": "say", "completions": ANSWERS}
    answer = await client.post("/score", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "generator_failed")


async def test_an_inference_server_that_is_down_is_a_503_with_a_time_to_come_back(
    client: httpx.AsyncClient, services: Services, reward_id: str
) -> None:
    await services.http.aclose()
    services.http = httpx.AsyncClient(base_url="http://127.0.0.1:9")
    body = {"adapter_id": reward_id, "prompt": "say", "completions": ANSWERS}
    answer = await client.post("/score", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "generator_unavailable")
    assert int(answer.headers["retry-after"]) > 0


async def test_a_client_that_goes_away_ends_the_call_too(
    app: FastAPI,
    client: httpx.AsyncClient,
    inference: Inference,
    services: Services,
    reward_id: str,
) -> None:
    inference.pause_s, inference.patience = 0.02, 5000
    body = {"adapter_id": reward_id, "prompt": "say", "completions": ANSWERS}
    with serve(inference.app) as inference_port, serve(app) as port:
        services.http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{inference_port}")
        async with httpx.AsyncClient(headers=client.headers) as impatient:
            url = f"http://127.0.0.1:{port}/score"
            asking = asyncio.create_task(impatient.post(url, json=body, timeout=60))
            await asyncio.to_thread(wait_until, lambda: len(inference.asked) == 1)
            asking.cancel()
            await asyncio.wait([asking])
        await asyncio.to_thread(wait_until, lambda: inference.given_up == 1)
