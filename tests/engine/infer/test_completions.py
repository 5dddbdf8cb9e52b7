"""POST /v1/completions: its shapes, its streams, where it stops and what it refuses."""

import json
from typing import Any

import httpx
import pytest

from tests.engine.infer.world import (
    BASE_NAME,
    CONTEXT,
    SENTENCES,
    World,
    complete,
    error_of,
    metric,
    serve,
    stream,
)

SAMPLED = {"max_tokens": 40, "temperature": 1.5, "seed": 11, "ignore_eos": True}


def test_an_answer_has_the_shape_of_openai_and_counts_its_tokens(
    client: httpx.Client, world: World
) -> None:
    answer = complete(client, prompt=SENTENCES[0], max_tokens=5, ignore_eos=True)
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert answer["model"] == BASE_NAME
    assert answer["choices"][0].keys() == {
        "index", "text", "logprobs", "finish_reason", "stop_reason"
    }  # fmt: skip
    assert answer["choices"][0]["finish_reason"] == "length"
    prompt = len(world.ids(SENTENCES[0]))
    assert answer["usage"] == {
        "prompt_tokens": prompt,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens": 5,
        "total_tokens": prompt + 5,
    }


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"n": 3, "model": "ad_rank8"},
        {"echo": True, "prompt": SENTENCES[3]},
        {"echo": True, "logprobs": 2, "n": 2},
        {"stop": ["e", "a"]},
        {"logprobs": 1, "return_token_ids": True},
        {"prompt": [[5, 6, 7], [8, 9]], "echo": True},
    ],
)
def test_a_stream_adds_up_to_the_answer_given_at_once(
    body: dict[str, Any], client: httpx.Client
) -> None:
    body = {"prompt": SENTENCES[2], **SAMPLED, **body}
    whole = complete(client, **body)
    chunks = stream(client, **body, stream_options={"include_usage": True})
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == whole["usage"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    for expected in whole["choices"]:
        pieces = [
            choice
            for chunk in chunks
            for choice in chunk["choices"]
            if choice["index"] == expected["index"]
        ]
        assert "".join(piece["text"] for piece in pieces) == expected["text"]
        assert [piece["finish_reason"] for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
        assert pieces[-1]["finish_reason"] == expected["finish_reason"]
        if expected["logprobs"]:
            for name, values in expected["logprobs"].items():
                assert [v for piece in pieces for v in piece["logprobs"][name]] == values
        if "token_ids" in expected:
            ids = [token for piece in pieces for token in piece["token_ids"]]
            assert ids == expected["token_ids"]


def test_no_piece_of_a_stream_has_half_a_character(client: httpx.Client, world: World) -> None:
    """The tokens of these sentences are single bytes and cross characters."""
    for text in SENTENCES:
        chunks = stream(client, prompt=world.ids(text), max_tokens=0, echo=True)
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text
    body = {"prompt": SENTENCES[3], **SAMPLED, "max_tokens": 200}
    whole = complete(client, **body, return_token_ids=True)["choices"][0]
    assert whole["text"] == world.tokenizer.decode(whole["token_ids"])


def test_text_offsets_point_at_each_token(client: httpx.Client) -> None:
    choice = complete(
        client, prompt=SENTENCES[0], max_tokens=0, echo=True, logprobs=0
    )["choices"][0]  # fmt: skip
    assert choice["text"] == SENTENCES[0]
    assert choice["finish_reason"] == "length"
    for token, offset in zip(
        choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"], strict=True
    ):
        assert SENTENCES[0][offset:].startswith(token)


def test_top_logprobs_are_the_likeliest_and_have_the_chosen_token(client: httpx.Client) -> None:
    choice = complete(
        client, prompt=SENTENCES[0], max_tokens=6, temperature=0, logprobs=3, ignore_eos=True
    )["choices"][0]
    logprobs = choice["logprobs"]
    for token, own, top in zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        assert top[token] == own == max(top.values())  # it is greedy
        assert len(top) == 3


def test_logprobs_do_not_depend_on_the_sampling(client: httpx.Client) -> None:
    body = {"prompt": SENTENCES[0], "max_tokens": 1, "logprobs": 1, "top_k": 1}
    cold = complete(client, **body, temperature=0.0)["choices"][0]["logprobs"]
    hot = complete(client, **body, temperature=2.0)["choices"][0]["logprobs"]
    assert cold == hot


def test_a_stop_string_is_cut_off_wherever_the_tokens_break(client: httpx.Client) -> None:
    body = {"prompt": SENTENCES[0], **SAMPLED}
    text = complete(client, **body)["choices"][0]["text"]
    for start in (1, len(text) // 2, len(text) - 3):
        stop = text[start : start + 3]
        cut = complete(client, **body, stop=["never to be seen", stop])["choices"][0]
        assert cut["text"] == text[: text.index(stop)]
        assert (cut["finish_reason"], cut["stop_reason"]) == ("stop", stop)


def test_stop_tokens_end_the_answer_and_are_not_in_its_text(
    client: httpx.Client, world: World
) -> None:
    body = {"prompt": SENTENCES[0], **SAMPLED, "return_token_ids": True}
    ids = complete(client, **body)["choices"][0]["token_ids"]
    answer = complete(client, **body, stop_token_ids=[ids[7]])
    choice, at = answer["choices"][0], ids.index(ids[7])
    assert choice["token_ids"] == ids[: at + 1]
    assert choice["text"] == world.tokenizer.decode(ids[:at])
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", ids[7])
    assert answer["usage"]["completion_tokens"] == at + 1


def test_the_stop_tokens_of_an_adapters_contract_are_its_own(own_world: World) -> None:
    folder = own_world.add_lora("ad_x")
    body = {"model": "ad_x", "prompt": SENTENCES[0], **SAMPLED, "return_token_ids": True}
    with serve(own_world) as client:
        ids = complete(client, **body)["choices"][0]["token_ids"]
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["contract"]["stop_token_ids"] = [ids[4]]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with serve(own_world) as client:
        choice = complete(client, **{**body, "ignore_eos": False})["choices"][0]
    assert choice["token_ids"] == ids[: ids.index(ids[4]) + 1]
    assert choice["finish_reason"] == "stop"


def test_max_tokens_is_bounded_by_the_context(client: httpx.Client) -> None:
    prompt = [5] * (CONTEXT - 3)
    choice = complete(
        client, prompt=prompt, max_tokens=50, ignore_eos=True, return_token_ids=True
    )["choices"][0]  # fmt: skip
    assert len(choice["token_ids"]) == 3
    assert choice["finish_reason"] == "length"


def test_several_prompts_are_answered_in_order(client: httpx.Client) -> None:
    prompts = SENTENCES[:3]
    together = complete(client, prompt=prompts, n=2, max_tokens=6, temperature=0)["choices"]
    alone = [
        complete(client, prompt=prompt, max_tokens=6, temperature=0)["choices"][0]["text"]
        for prompt in prompts
    ]
    assert [choice["index"] for choice in together] == list(range(6))
    assert [choice["text"] for choice in together] == [text for text in alone for _ in range(2)]


REFUSED = [
    ({"prompt": "x", "temprature": 1}, 422, "unknown_field", "temprature"),
    ({"prompt": "x", "temperature": -1}, 422, "invalid_value", "temperature"),
    ({"prompt": "x", "max_tokens": "9"}, 422, "invalid_value", "max_tokens"),
    ({"prompt": "x", "top_p": 0}, 422, "invalid_value", "top_p"),
    ({"prompt": "x", "n": 0}, 422, "invalid_value", "n"),
    ({"prompt": "x", "stop": ""}, 422, "invalid_value", "stop"),
    ({"prompt": "x", "logprobs": 21}, 422, "invalid_value", "logprobs"),
    ({"prompt": "x", "stream_options": {}}, 422, "invalid_value", None),
    ({"prompt": "x", "max_tokens": 0}, 422, "invalid_value", None),
    ({"prompt": [True]}, 422, "invalid_value", "prompt"),
    ({"prompt": [1, "x"]}, 422, "invalid_value", "prompt"),
    ({"prompt": [-1]}, 422, "invalid_value", "prompt"),
    ({}, 422, "invalid_value", "prompt"),
    ({"prompt": "x", "n": 64, "model": "tiny"}, 200, None, None),
    ({"prompt": ["x"] * 99, "n": 64}, 400, "too_many_choices", "n"),
    ({"prompt": ""}, 400, "empty_prompt", "prompt"),
    ({"prompt": []}, 400, "empty_prompt", "prompt"),
    ({"prompt": [[]]}, 400, "empty_prompt", "prompt"),
    ({"prompt": [512]}, 400, "invalid_token_id", "prompt"),
    ({"prompt": [10**30]}, 400, "invalid_token_id", "prompt"),
    ({"prompt": [5] * CONTEXT}, 400, "context_length_exceeded", "prompt"),
    ({"prompt": "x", "model": "ad_unknown"}, 404, "model_not_found", "model"),
    ({"prompt": "x", "model": "../ad_rank4"}, 404, "model_not_found", "model"),
    ({"prompt": "x", "model": ""}, 404, "model_not_found", "model"),
]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("body", "status", "code", "param"), REFUSED)
def test_bad_requests_get_a_clear_answer(
    body: dict[str, Any],
    status: int,
    code: str | None,
    param: str | None,
    streamed: bool,
    client: httpx.Client,
) -> None:
    body = {"model": BASE_NAME, "max_tokens": 1, **body}
    if streamed and "stream_options" not in body:
        body["stream"] = True
    response = client.post("/v1/completions", json=body)
    assert response.status_code == status, response.text
    if code is not None:
        error = error_of(response)
        assert (error["code"], error["param"]) == (code, param)
        assert error["message"].endswith(".")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "malformed_json"),
        (b"{", 400, "malformed_json"),
        (b"[" * 100_000, 400, "malformed_json"),
        (b'{"model": "tiny", "prompt": "\xff"}', 400, "malformed_json"),
        (b'{"model": "tiny", "prompt": "\\ud800"}', 400, "malformed_json"),
        (b'{"model": "tiny", "prompt": "x", "seed": ' + b"9" * 5000 + b"}", 400, "malformed_json"),
        (b"[]", 422, "invalid_value"),
        (b" " * (4 * 1024 * 1024 + 1), 413, "body_too_large"),
    ],
)
def test_bodies_that_are_no_request_are_refused(
    body: bytes, status: int, code: str, client: httpx.Client
) -> None:
    response = client.post("/v1/completions", content=body)
    assert (response.status_code, error_of(response)["code"]) == (status, code)


def test_health_models_metrics_and_unknown_routes(client: httpx.Client) -> None:
    complete(client, model="ad_rank4", prompt="x", max_tokens=2, ignore_eos=True)
    assert client.get("/health").json() == {"status": "ok", "model": BASE_NAME}
    models = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
    assert models[BASE_NAME]["parent"] is None
    assert models[BASE_NAME]["max_model_len"] == CONTEXT
    assert models["ad_rank4"]["parent"] == BASE_NAME
    assert metric(client, 'luthier_inference_requests_total{outcome="ok"}') > 0
    assert metric(client, "luthier_inference_generated_tokens_total") >= 2
    assert metric(client, "luthier_inference_sequences") == 0
    assert metric(client, "luthier_inference_time_to_first_token_seconds_count") > 0
    assert error_of(client.get("/v1/nothing"))["code"] == "not_found"
    assert error_of(client.get("/v1/completions"))["code"] == "method_not_allowed"


def test_a_request_keeps_the_id_it_came_with_unless_it_is_odd(client: httpx.Client) -> None:
    given = client.get("/health", headers={"x-request-id": "req-1"})
    assert given.headers["x-request-id"] == "req-1"
    odd = client.get("/health", headers={"x-request-id": "a b"})
    assert odd.headers["x-request-id"].startswith("req_")
