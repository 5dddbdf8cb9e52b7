"""POST /generate: rendered under the adapter's own contract, sampled elsewhere, ours in answer."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, Response
from tokenizers import Tokenizer

from api.services import Services
from tests.api.inference import LOGPROBS, USAGE, Inference
from tests.api.making import publish_adapter

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("connected")]

HELLO = {"messages": [{"role": "user", "content": "say"}]}
KEPT: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {
        "name": "answer",
        "schema": {"type": "object", "properties": {"b": {"const": None}, "a": {}}},
    },
}
GERMAN = "{% for m in messages %}<|user|>Frage: {{ m.content }}{% endfor %}"


def text_of(services: Services, ids: list[int]) -> str:
    base = services.bases.find("tiny")
    tokenizer = Tokenizer.from_file(str(base.path / "tokenizer.json"))
    return str(tokenizer.decode(ids, skip_special_tokens=False))


async def test_messages_are_rendered_and_answered(
    client: httpx.AsyncClient, inference: Inference, services: Services
) -> None:
    answer = await client.post("/generate", json=HELLO)

    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body.pop("id").startswith("gen_")
    assert body == {
        "object": "generation",
        "model": "tiny",
        "adapter_id": None,
        "text": "one two three",
        "finish_reason": "stop",
        "usage": USAGE,
    }
    (asked,) = inference.asked
    assert text_of(services, asked.pop("prompt")) == "<|user|>say<|end|><|assistant|>"
    assert asked.pop("user").startswith("tn_")
    assert asked == {
        "model": "tiny",
        "max_tokens": 256,
        "temperature": 1.0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": [1],
    }


async def test_a_prompt_is_raw_text_and_sampling_goes_through(
    client: httpx.AsyncClient, inference: Inference, services: Services
) -> None:
    sampling = {
        "max_tokens": 5,
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 3,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "seed": 9,
        "stop": ["\n"],
        "logprobs": 2,
    }
    answer = await client.post(
        "/generate", json={"prompt": "say ", "base_model": "tiny"} | sampling
    )
    assert answer.json()["logprobs"] == LOGPROBS
    (asked,) = inference.asked
    assert text_of(services, asked["prompt"]).endswith("say ")
    assert {name: asked[name] for name in sampling} == sampling


@pytest.mark.parametrize(
    ("format", "passed_on"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "json_object"}),
        (KEPT, KEPT),
        (KEPT | {"json_schema": KEPT["json_schema"] | {"strict": None}}, KEPT),
    ],
)
async def test_a_format_goes_through_as_the_inference_servers_take_it(
    client: httpx.AsyncClient, inference: Inference, format: Any, passed_on: Any
) -> None:
    for stream in (False, True):
        body = HELLO | {"response_format": format, "stream": stream}
        assert (await client.post("/generate", json=body)).status_code == 200
    assert [asked.get("response_format") for asked in inference.asked] == [passed_on, passed_on]
    assert json.dumps(inference.asked[0].get("response_format")) == json.dumps(passed_on)


async def test_an_adapter_speaks_by_its_own_contract(
    client: httpx.AsyncClient, inference: Inference, services: Services, tmp_path: Path
) -> None:
    adapter_id = publish_adapter(
        services, "ours", tmp_path / "a", chat_template=GERMAN, stop_token_ids=[1, 4]
    )
    body = (await client.post("/generate", json=HELLO | {"adapter_id": adapter_id})).json()
    assert (body["model"], body["adapter_id"]) == ("tiny", adapter_id)
    (asked,) = inference.asked
    assert asked["model"] == adapter_id
    assert asked["stop_token_ids"] == [1, 4]
    assert text_of(services, asked["prompt"]) == "<|user|>Frage: say"


async def test_several_adapters_are_asked_for_by_weight(
    client: httpx.AsyncClient, inference: Inference, services: Services, tmp_path: Path
) -> None:
    first = publish_adapter(services, "ours", tmp_path / "a", chat_template=GERMAN)
    second = publish_adapter(services, "ours", tmp_path / "b")
    theirs = publish_adapter(services, "theirs", tmp_path / "c")
    adapters = [{"adapter_id": first}, {"adapter_id": second, "weight": -0.5}]
    answer = await client.post("/generate", json=HELLO | {"adapters": adapters})
    assert (answer.status_code, answer.json()["adapter_id"]) == (200, None)
    (asked,) = inference.asked
    assert asked["model"] == "tiny"
    assert asked["adapters"] == [{"id": first, "weight": 1.0}, {"id": second, "weight": -0.5}]
    assert text_of(services, asked["prompt"]) == "<|user|>Frage: say"
    foreign = await client.post("/generate", json=HELLO | {"adapters": [{"adapter_id": theirs}]})
    assert foreign.status_code == 404
    both = HELLO | {"adapter_id": first, "adapters": adapters}
    assert (await client.post("/generate", json=both)).status_code == 422
    assert len(inference.asked) == 1


async def test_a_changed_tokenizer_is_refused_not_guessed_around(
    client: httpx.AsyncClient, inference: Inference, services: Services, tmp_path: Path
) -> None:
    adapter_id = publish_adapter(services, "ours", tmp_path / "a", tokenizer_sha256="0" * 64)
    answer = await client.post("/generate", json=HELLO | {"adapter_id": adapter_id})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "render_invalid")
    assert inference.asked == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "body"),
        (HELLO | {"prompt": "x"}, "body"),
        ({"messages": []}, "body"),
        ({"prompt": ""}, "prompt"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        (HELLO | {"max_tokens": 0}, "max_tokens"),
        (HELLO | {"temperature": 3}, "temperature"),
        (HELLO | {"top_p": 0}, "top_p"),
        (HELLO | {"min_p": 2}, "min_p"),
        (HELLO | {"repetition_penalty": 0}, "repetition_penalty"),
        (HELLO | {"presence_penalty": 3}, "presence_penalty"),
        (HELLO | {"adapters": []}, "adapters"),
        (HELLO | {"adapters": [{"adapter_id": "ad_0", "weight": "x"}]}, "adapters.0.weight"),
        (HELLO | {"seed": 2**63}, "seed"),
        (HELLO | {"base_model": "gpt-9"}, "base_model"),
        (HELLO | {"response_format": "json"}, "response_format"),
        (HELLO | {"response_format": {"type": "xml"}}, "response_format.type"),
        (HELLO | {"response_format": {"type": "json_schema"}}, "response_format"),
        (HELLO | {"response_format": KEPT | {"type": "text"}}, "response_format"),
        (
            HELLO | {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.json_schema.schema",
        ),
        (
            HELLO | {"response_format": KEPT | {"json_schema": {"name": "a b", "schema": {}}}},
            "response_format.json_schema.name",
        ),
    ],
)
async def test_what_cannot_be_asked_is_refused_at_its_field(
    client: httpx.AsyncClient, inference: Inference, body: dict[str, Any], param: str
) -> None:
    answer = await client.post("/generate", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, param)
    assert inference.asked == []


async def test_an_adapter_of_another_base_is_refused(
    client: httpx.AsyncClient, services: Services, base_folder: Path, tmp_path: Path
) -> None:
    services.bases._allowed["other"] = str(base_folder)
    adapter_id = publish_adapter(services, "ours", tmp_path / "a")
    body = HELLO | {"adapter_id": adapter_id, "base_model": "other"}
    answer = await client.post("/generate", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "base_model")


async def test_a_reward_model_writes_nothing(
    client: httpx.AsyncClient, inference: Inference, services: Services, tmp_path: Path
) -> None:
    adapter_id = publish_adapter(services, "ours", tmp_path / "a", kind="reward")
    answer = await client.post("/generate", json=HELLO | {"adapter_id": adapter_id})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (422, "adapter_cannot_generate")
    assert error["param"] == "adapter_id"
    assert "POST /score" in error["message"]
    assert inference.asked == []


def chunks_of(text: str) -> list[Any]:
    frames = [frame.removeprefix("data: ") for frame in text.split("\n\n") if frame]
    return [frame if frame == "[DONE]" else json.loads(frame) for frame in frames]


async def test_a_stream_ends_with_the_reason_the_usage_and_done(client: httpx.AsyncClient) -> None:
    answer = await client.post("/generate", json=HELLO | {"stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *pieces, last, done = chunks_of(answer.text)
    assert [piece["text"] for piece in pieces] == ["one ", "two ", "three"]
    assert set(pieces[0]) == {"object", "id", "text"}
    assert (last["text"], last["finish_reason"], last["usage"]) == ("", "stop", USAGE)
    assert len({chunk["id"] for chunk in [*pieces, last]}) == 1
    assert done == "[DONE]"


async def test_a_log_prob_that_is_no_number_is_null(
    client: httpx.AsyncClient, inference: Inference
) -> None:
    text = '{"choices": [{"text": "x", "logprobs": {"a": [-Infinity, NaN]}}], "usage": %s}'
    inference.answer = Response(text % json.dumps(USAGE), media_type="application/json")
    answer = await client.post("/generate", json=HELLO)
    assert answer.json()["logprobs"] == {"a": [None, None]}


REFUSAL = {"message": "It differs by 0.3.", "type": "x", "param": None, "code": "adapter_mismatch"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("theirs", "ours", "kind"),
    [
        (422, 422, "invalid_request_error"),
        (404, 404, "not_found_error"),
        (429, 429, "rate_limit_error"),
        (503, 503, "server_error"),
        (500, 502, "server_error"),
    ],
)
async def test_a_refusal_of_the_inference_server_goes_through(
    client: httpx.AsyncClient, inference: Inference, stream: bool, theirs: int, ours: int, kind: str
) -> None:
    inference.answer = JSONResponse({"error": REFUSAL}, theirs)
    answer = await client.post("/generate", json=HELLO | {"stream": stream})
    assert answer.status_code == ours
    assert answer.json() == {"error": REFUSAL | {"type": kind}}
    assert ("retry-after" in answer.headers) == (ours in (429, 503))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "nonsense", [Response("hello"), Response("<html>", 500), JSONResponse({"detail": "no"}, 404)]
)
async def test_nonsense_of_the_inference_server_is_a_bad_gateway(
    client: httpx.AsyncClient, inference: Inference, nonsense: Response, stream: bool
) -> None:
    inference.answer = nonsense
    answer = await client.post("/generate", json=HELLO | {"stream": stream})
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "generator_failed")


@pytest.mark.parametrize("stream", [False, True])
async def test_an_inference_server_that_is_down_is_a_503_with_a_time_to_come_back(
    client: httpx.AsyncClient, services: Services, stream: bool
) -> None:
    await services.http.aclose()
    services.http = httpx.AsyncClient(base_url="http://127.0.0.1:9")
    answer = await client.post("/generate", json=HELLO | {"stream": stream})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "generator_unavailable")
    assert int(answer.headers["retry-after"]) > 0


@pytest.mark.parametrize(
    ("pieces", "code"),
    [
        ([{"choices": [{"text": "one"}]}, {"error": REFUSAL}], "adapter_mismatch"),
        ([{"choices": [{"text": "one"}]}], "generator_failed"),
        ([{"choices": [{"text": "one"}]}, "{oops"], "generator_failed"),
    ],
)
async def test_an_error_in_the_middle_of_a_stream_is_its_last_event(
    client: httpx.AsyncClient, inference: Inference, pieces: list[Any], code: str
) -> None:
    inference.pieces = pieces
    answer = await client.post("/generate", json=HELLO | {"stream": True})
    first, last = chunks_of(answer.text)
    assert first["text"] == "one"
    assert last["error"]["code"] == code
