"""POST /v1/completions with a schema: every whole answer satisfies it, and others never notice."""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import clock
from tests.engine.infer.schemas import HOSTILE, NESTED, SCHEMAS, check
from tests.engine.infer.test_grammar import SHIPPED
from tests.engine.infer.world import (
    BASE_NAME,
    SENTENCES,
    World,
    complete,
    error_of,
    metric,
    serve,
    stream,
    write_base,
)

HOT = {"prompt": SENTENCES[0], "temperature": 1.5, "max_tokens": 400}
ASK = "<|bos|><|user|>Write this as JSON: name: Ada, age: 7<|end|><|assistant|>"
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


def format_of(schema: dict[str, Any]) -> dict[str, Any]:
    named = {"name": "answer", "schema": schema, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    base = tmp_path_factory.mktemp("shipped") / "base"
    shutil.copytree(SHIPPED.parent, base)
    with serve(World(base.parent, base)) as client:
        yield client


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
@pytest.mark.parametrize("server", ["client", "shipped"])
def test_hot_answers_satisfy_the_schema(
    server: str, schema: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    client = request.getfixturevalue(server)
    choices = complete(client, **HOT, **format_of(schema), n=24, seed=5)["choices"]
    whole = [each for each in choices if each["finish_reason"] == "stop"]
    assert {each["finish_reason"] for each in choices} <= {"stop", "length"}
    assert len(whole) >= 16
    for choice in whole:
        check(choice["text"], schema)
    assert len({choice["text"] for choice in whole}) > 1


@pytest.mark.parametrize("model", ["ad_rank8", "ad_prefix", "ad_prompt", "ad_full"])
def test_adapters_of_every_kind_are_kept_to_the_schema(model: str, client: httpx.Client) -> None:
    for choice in complete(client, model=model, **HOT, **format_of(NESTED), n=4, seed=1)["choices"]:
        if choice["finish_reason"] == "stop":
            check(choice["text"], NESTED)
        else:
            assert len(choice["text"]) > 100


def test_any_object_is_an_object(client: httpx.Client) -> None:
    asked = [
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"json_object": True}},
    ]
    answers = [complete(client, **HOT, **each, n=12, seed=9)["choices"] for each in asked]
    assert answers[0] == answers[1]
    whole = [each["text"] for each in answers[0] if each["finish_reason"] == "stop"]
    assert len(whole) >= 3
    assert {type(json.loads(text)) for text in whole} == {dict}


def test_every_way_to_say_a_schema_gives_the_same_answer(client: httpx.Client) -> None:
    ways = [
        format_of(NESTED),
        {"structured_outputs": {"json": NESTED}},
        {"structured_outputs": {"json": json.dumps(NESTED)}},
    ]
    answers = [complete(client, **HOT, **way, n=3, seed=2)["choices"] for way in ways]
    assert answers[0] == answers[1] == answers[2]


def test_text_is_what_it_would_be_without_a_format(client: httpx.Client) -> None:
    body = {**HOT, "max_tokens": 20, "seed": 4, "ignore_eos": True}
    plain = complete(client, **body)["choices"]
    assert complete(client, **body, response_format={"type": "text"})["choices"] == plain


def test_a_schema_that_does_not_bind_changes_no_token(shipped: httpx.Client) -> None:
    body = {"prompt": ASK, "temperature": 0, "max_tokens": 60, "return_token_ids": True}
    plain = complete(shipped, **body)["choices"][0]
    kept = complete(shipped, **body, **format_of(PERSON))["choices"][0]
    assert check(plain["text"], PERSON) == {"name": "Ada", "age": 7}
    assert kept["text"] == plain["text"]
    assert kept["token_ids"] == plain["token_ids"][:-1]  # it needs no stop token to end
    assert (kept["finish_reason"], kept["stop_reason"]) == ("stop", None)


def test_a_seed_gives_the_same_documents_streamed_or_not(client: httpx.Client) -> None:
    body = {**HOT, **format_of(NESTED), "n": 4, "seed": 3, "return_token_ids": True}
    whole = complete(client, **body)["choices"]
    texts, ends = [""] * 4, [None] * 4
    for chunk in stream(client, **body):
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
            ends[choice["index"]] = choice["finish_reason"] or ends[choice["index"]]
    assert texts == [choice["text"] for choice in whole]
    assert ends == [choice["finish_reason"] for choice in whole]
    assert len(set(texts)) == 4


def test_max_tokens_and_stop_strings_cut_a_document_off(client: httpx.Client) -> None:
    body = {**HOT, **format_of(NESTED), "seed": 3}
    whole = complete(client, **body)["choices"][0]["text"]
    short = complete(client, **{**body, "max_tokens": 5})["choices"][0]
    assert short["finish_reason"] == "length"
    assert whole.startswith(short["text"].rstrip("\ufffd"))
    cut = complete(client, **body, stop=['"customer"'])["choices"][0]
    assert (cut["finish_reason"], cut["stop_reason"]) == ("stop", '"customer"')
    assert cut["text"] == whole[: whole.index('"customer"')]


def test_a_document_that_ends_with_the_last_token_ended_by_itself(client: httpx.Client) -> None:
    body = {**HOT, **format_of({"const": [1, 2]}), "seed": 3, "return_token_ids": True}
    tokens = len(complete(client, **body)["choices"][0]["token_ids"])
    exact = complete(client, **{**body, "max_tokens": tokens})["choices"][0]
    assert (exact["finish_reason"], json.loads(exact["text"])) == ("stop", [1, 2])


def test_stop_tokens_come_only_after_a_whole_document(client: httpx.Client, world: World) -> None:
    """A bare number may end anywhere: by a stop token, of those that are asked for."""
    stops = [*world.ids("a"), 1]
    schema = {"type": "integer", "minimum": 1}
    body = {**HOT, **format_of(schema), "stop_token_ids": stops, "n": 16, "seed": 8}
    choices = complete(client, **body)["choices"]
    assert {choice["finish_reason"] for choice in choices} == {"stop"}
    assert {choice["stop_reason"] for choice in choices} <= {*stops}
    for choice in choices:
        check(choice["text"], schema)
    body |= {**format_of({"type": "string", "minLength": 20, "maxLength": 25})}
    choices = complete(client, **body, return_token_ids=True)["choices"]
    assert {choice["stop_reason"] for choice in choices} == {None}
    for choice in choices:
        assert not {*stops} & {*choice["token_ids"]}


def test_logprobs_are_those_of_the_model_without_the_schema(
    client: httpx.Client, world: World
) -> None:
    prompt = world.ids(SENTENCES[1])
    body = {**HOT, **format_of(NESTED), "prompt": prompt, "max_tokens": 12, "seed": 1}
    choice = complete(client, **body, logprobs=1, return_token_ids=True)["choices"][0]
    ids = prompt + choice["token_ids"]
    again = complete(client, prompt=ids, echo=True, logprobs=1, max_tokens=0)["choices"][0]
    expected = again["logprobs"]["token_logprobs"][len(prompt) :]
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(expected, abs=1e-4)
    assert min(expected) < -5  # the model would hardly have said it


def test_rows_without_a_schema_do_not_notice_those_with_one(client: httpx.Client) -> None:
    plain = {"prompt": SENTENCES[1], "max_tokens": 60, "ignore_eos": True, "n": 2}
    asked = [{**plain, "temperature": heat, "seed": 7} for heat in (0, 1.3)]
    alone = [complete(client, **body)["choices"] for body in asked]
    with ThreadPoolExecutor(8) as threads:
        kept = [
            threads.submit(complete, client, **HOT, **format_of(schema), n=4, seed=5)
            for schema in SCHEMAS.values()
        ]
        beside = [threads.submit(complete, client, **body) for body in asked]
    assert [each.result()["choices"] for each in beside] == alone
    for schema, each in zip(SCHEMAS.values(), kept, strict=True):
        for choice in each.result()["choices"]:
            if choice["finish_reason"] == "stop":
                check(choice["text"], schema)


def test_a_document_goes_on_where_it_was_after_its_sequence_was_turned_out(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, write_base(tmp_path / "base", context=256))
    long = {"type": "string", "minLength": 140, "maxLength": 160}
    body = {"prompt": "x", "temperature": 1.5, "max_tokens": 240, **format_of(long), "seed": 5}
    with serve(world) as client:
        expected = complete(client, **body, n=8)["choices"]
    with serve(world, kv_bytes=300 * 384) as client:
        assert complete(client, **body, n=8)["choices"] == expected
        assert metric(client, "luthier_inference_sequences_turned_out_total") > 0
    whole = [choice["text"] for choice in expected if choice["finish_reason"] == "stop"]
    assert len(whole) >= 3
    for text in whole:
        check(text, long)


def test_a_hostile_schema_is_refused_while_others_are_served(client: httpx.Client) -> None:
    with ThreadPoolExecutor(1) as threads:
        schema, said = HOSTILE["patterns at once"]
        begun = clock.now()
        refused = threads.submit(
            client.post,
            "/v1/completions",
            json={"model": BASE_NAME, "prompt": "x", **format_of(schema)},
        )
        served = 0
        while not refused.done():
            complete(client, prompt="x", max_tokens=2)
            served += 1
    error = error_of(refused.result())
    assert (refused.result().status_code, error["code"]) == (422, "schema_invalid")
    assert error["param"] == "response_format.json_schema.schema"
    assert said in error["message"]
    assert served > 5
    again = clock.now()
    body = {"model": BASE_NAME, "prompt": "x", "stream": True, **format_of(schema)}
    assert client.post("/v1/completions", json=body).status_code == 422
    assert clock.now() - again < max(1.0, (again - begun) / 2)  # it is known by now


SCHEMA = "response_format.json_schema.schema"
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"response_format": {"type": "xml"}}, "response_format.type", "json_schema"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "give `json_schema`"),
    (
        {"response_format": {"type": "text", "json_schema": {"name": "a", "schema": {}}}},
        "response_format",
        "with no other",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
        SCHEMA,
        "required",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "!", "schema": {}}}},
        "response_format.json_schema.name",
        "pattern",
    ),
    (format_of({"type": "strnig"}), f"{SCHEMA}.type", "no JSON schema"),
    (format_of({"properties": {"a": {"pattern": "("}}}), f"{SCHEMA}.properties.a.pattern", "("),
    (format_of({"type": "array", "uniqueItems": True}), SCHEMA, "uniqueItems"),
    (format_of({"$ref": "http://127.0.0.1:9/x"}), f"{SCHEMA}.$ref", "inside the schema"),
    ({"structured_outputs": {}}, "structured_outputs", "give one of"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", "object"),
    ({"structured_outputs": {"regex": "a"}}, "structured_outputs.regex", "not a field"),
    (
        {"structured_outputs": {"json": {"enum": []}}},
        "structured_outputs.json",
        "Unsatisfiable",
    ),
    (
        {**format_of({}), "structured_outputs": {"json_object": True}},
        "body",
        "give one of",
    ),
]


@pytest.mark.parametrize(("body", "param", "said"), REFUSED)
def test_what_cannot_be_kept_to_is_refused_at_its_field(
    body: dict[str, Any], param: str, said: str, client: httpx.Client
) -> None:
    for streamed in (False, True):
        response = client.post(
            "/v1/completions",
            json={"model": BASE_NAME, "prompt": "x", "stream": streamed, **body},
        )
        error = error_of(response)
        assert (response.status_code, error["param"] or "body") == (422, param)
        assert said in error["message"]


def test_stop_tokens_that_leave_no_way_to_begin_fail_the_request_alone(
    client: httpx.Client, world: World
) -> None:
    opening = [i for i in range(400) if world.tokenizer.decode([i])[:1] in ("{", "[")]
    body = {"prompt": "x", **format_of({"type": "object"}), "stop_token_ids": opening}
    response = client.post("/v1/completions", json={"model": BASE_NAME, **body})
    assert (response.status_code, error_of(response)["code"]) == (422, "schema_unsatisfiable")
    complete(client, prompt="x", max_tokens=1)
