"""POST /graders/validate and /graders/run: sound or not, and what a sample gets."""

import asyncio
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.responses import JSONResponse

from api.services import Services
from engine.completions import NEUTRAL
from tests.api.inference import USAGE, Inference
from tests.api.making import publish_adapter
from tests.api.test_generate import text_of
from tests.engine.graders.making import EXAMPLES

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("connected")]

ATTACKS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "corpus" / "graders" / "attacks.json").read_text()
)
ITEM = {"answer": "7"}
SCORE, LABEL = EXAMPLES["score_model"], EXAMPLES["label_model"]


def says(inference: Inference, words: str) -> None:
    choice = {"text": words, "finish_reason": "stop", "index": 0}
    inference.answer = JSONResponse({"choices": [choice], "usage": USAGE})


async def run(client: httpx.AsyncClient, grader: dict[str, Any], sample: str = "7") -> Any:
    body = {"grader": grader, "model_sample": sample, "item": ITEM}
    answer = await client.post("/graders/run", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("kind", EXAMPLES)
async def test_a_sound_grader_comes_back_with_its_defaults(
    client: httpx.AsyncClient, kind: str
) -> None:
    first = await client.post("/graders/validate", json={"grader": EXAMPLES[kind]})
    assert first.status_code == 200, first.text
    made = first.json()["grader"]
    assert {**made, **EXAMPLES[kind]}.keys() == made.keys()
    assert made["name"] == ""
    again = await client.post("/graders/validate", json={"grader": made})
    assert again.json() == first.json()


async def test_a_run_has_openais_shape(client: httpx.AsyncClient) -> None:
    found = await run(client, EXAMPLES["multi"] | {"name": "both"}, "7777")
    metadata = found["metadata"]
    assert math.isfinite(metadata.pop("execution_time"))
    errors = metadata.pop("errors")
    assert errors.pop("details") == []
    assert set(errors.values()) == {False, None}
    assert len(errors) == 14
    assert metadata == {
        "name": "both",
        "type": "multi",
        "scores": {"right": 0.0, "short": 0.0},
        "token_usage": None,
        "sampled_model_name": None,
    }
    assert (found["reward"], found["passed"]) == (0.0, None)
    assert found["sub_rewards"] == {"right": 0.0, "short": 0.0}
    assert found["model_grader_token_usage_per_model"] == {}


@pytest.mark.parametrize("kind", ["string_check", "text_similarity", "regex", "length", "multi"])
async def test_a_right_sample_has_a_reward_of_1(client: httpx.AsyncClient, kind: str) -> None:
    assert (await run(client, EXAMPLES[kind]))["reward"] == 1.0


async def test_what_a_sample_lacks_is_told_beside_the_reward(client: httpx.AsyncClient) -> None:
    grader = EXAMPLES["multi"] | {
        "graders": {
            "right": EXAMPLES["string_check"] | {"reference": "{{ item.anser }}"},
            "short": EXAMPLES["string_check"] | {"input": "{{ sample.output_json.a }}"},
        }
    }
    found = await run(client, grader, "no json")
    errors = found["metadata"]["errors"]
    assert found["reward"] == 0.0
    assert [name for name, value in errors.items() if value is True] == [
        "invalid_variable_error",
        "sample_parse_error",
    ]
    assert errors["details"][0] == (
        "graders.right: {{ item.anser }} names nothing: item has 'answer'."
    )


def multi(**parts: dict[str, Any]) -> dict[str, Any]:
    return EXAMPLES["multi"] | {"graders": parts}


def judge(role: str, content: str) -> dict[str, Any]:
    return SCORE | {"input": [{"role": role, "content": content}]}


BAD_SCHEMA = {"type": "json_schema", "json_schema": {"items": {"type": "x"}}}
DEEP = multi(grader=multi(x={"type": "length", "maximum": "y"}))


@pytest.mark.parametrize(
    ("grader", "field", "code"),
    [
        ({"type": "regex", "pattern": "("}, ".pattern", "pattern_invalid"),
        ({"type": "regex"}, ".pattern", "invalid_request"),
        ({"type": "regex", "pattern": "a", "flags": 1}, ".flags", "unknown_field"),
        ({"pattern": "a"}, ".type", "invalid_request"),
        ({"type": "nope"}, ".type", "invalid_request"),
        ({"type": "python", "source": "x"}, ".type", "invalid_request"),
        (SCORE | {"range": [1, 0]}, "", "invalid_request"),
        (judge("x", ""), ".input.0.role", "invalid_request"),
        (judge("user", "{{ x }}"), ".input.0.content", "template_invalid"),
        (BAD_SCHEMA, ".json_schema.items.type", "schema_invalid"),
        (EXAMPLES["multi"] | {"calculate_output": "no"}, ".calculate_output", "formula_invalid"),
        (multi(regex={"type": "regex"}), ".graders.regex.pattern", "invalid_request"),
        (multi(regex={"type": "python"}), ".graders.regex.type", "invalid_request"),
        (multi(a=EXAMPLES["regex"] | {"id": "x"}), ".graders.a.id", "unknown_field"),
        (DEEP, ".graders.grader.graders.x.maximum", "invalid_request"),
    ],
)
async def test_a_grader_that_cannot_be_is_refused_at_its_field(
    client: httpx.AsyncClient, grader: dict[str, Any], field: str, code: str
) -> None:
    bodies = {"validate": {"grader": grader}, "run": {"grader": grader, "model_sample": "x"}}
    for route, body in bodies.items():
        answer = await client.post(f"/graders/{route}", json=body)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["code"]) == (
            422,
            f"grader{field}",
            code,
        )


async def test_all_problems_are_told_at_once(client: httpx.AsyncClient) -> None:
    grader = EXAMPLES["multi"] | {
        "graders": {"a": {"type": "regex", "pattern": "("}, "b": {"type": "regex", "pattern": ")"}},
    }
    answer = await client.post("/graders/validate", json={"grader": grader})
    fields = [problem["field"] for problem in answer.json()["error"]["problems"]]
    assert fields == [
        "grader.calculate_output",
        "grader.calculate_output",
        "grader.graders.a.pattern",
        "grader.graders.b.pattern",
    ]


async def test_a_judge_is_asked_by_its_own_template(
    client: httpx.AsyncClient, inference: Inference, services: Services
) -> None:
    says(inference, "0.5")
    sampling = {"seed": 3, "max_completions_tokens": 9}
    found = await run(client, SCORE | {"sampling_params": sampling, "pass_threshold": 0.5})
    assert (found["reward"], found["passed"]) == (0.5, True)
    metadata = found["metadata"]
    assert (metadata["sampled_model_name"], metadata["token_usage"]) == ("tiny", USAGE)
    assert found["model_grader_token_usage_per_model"] == {"tiny": USAGE}
    (asked,) = inference.asked
    rendered = text_of(services, asked.pop("prompt"))
    assert rendered == (
        "<|user|>Rate: 7\n\nAnswer with one number from 0 to 1 and nothing else."
        "<|end|><|assistant|>"
    )
    assert asked == {
        "model": "tiny",
        "max_tokens": 9,
        "temperature": 0.0,
        "top_p": 1.0,
        "seed": 3,
        "stop_token_ids": [1],
        "ignore_eos": True,
        **NEUTRAL,
    }


async def test_an_adapter_of_the_tenant_can_judge_and_a_foreign_one_is_unknown(
    client: httpx.AsyncClient,
    client_of: Callable[[str], httpx.AsyncClient],
    inference: Inference,
    services: Services,
    tmp_path: Path,
) -> None:
    says(inference, "Label: good")
    adapter_id = publish_adapter(services, "ours", tmp_path / "a")
    found = await run(client, LABEL | {"model": adapter_id})
    assert (found["reward"], inference.asked[0]["model"]) == (1.0, adapter_id)

    body = {"grader": LABEL | {"model": adapter_id}, "model_sample": "x"}
    foreign = await client_of("theirs").post("/graders/run", json=body)
    body["grader"]["model"] = made_up = "ad_" + "0" * 24
    unknown = await client.post("/graders/run", json=body)
    assert foreign.status_code == unknown.status_code == 404
    assert foreign.content.replace(adapter_id.encode(), made_up.encode()) == unknown.content
    assert len(inference.asked) == 1


@pytest.mark.parametrize("words", ["", "perhaps", "1 or 2"])
async def test_a_judge_that_gives_no_score_is_an_error_of_the_run(
    client: httpx.AsyncClient, inference: Inference, words: str
) -> None:
    says(inference, words)
    found = await run(client, SCORE)
    assert found["reward"] == 0.0
    assert found["metadata"]["errors"]["model_grader_parse_error"] is True


async def test_several_judges_are_asked_at_once(
    client: httpx.AsyncClient, inference: Inference
) -> None:
    says(inference, "1 good")
    grader = {
        "type": "multi",
        "graders": {"a": SCORE, "b": LABEL, "c": SCORE},
        "calculate_output": "min(a, b, c)",
    }
    found = await run(client, grader)
    assert found["reward"] == 1.0
    assert len(inference.asked) == 3
    assert found["metadata"]["token_usage"]["total_tokens"] == 3 * USAGE["total_tokens"]


async def test_a_model_that_is_not_there_is_refused_at_its_field(
    client: httpx.AsyncClient, inference: Inference
) -> None:
    grader = {"type": "multi", "graders": {"a": SCORE | {"model": "gpt-9"}}, "weights": {"a": 1}}
    answer = await client.post("/graders/run", json={"grader": grader, "model_sample": "x"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (422, "model_unknown")
    assert error["param"] == "grader.graders.a.model"
    assert inference.asked == []


WEIGHED: dict[str, Any] = {
    "type": "score_model",
    "input": [
        {"role": "user", "content": "say {{ item.answer }}"},
        {"role": "assistant", "content": "{{ sample.output_text }}"},
    ],
}


@pytest.fixture
def reward_id(services: Services, tmp_path: Path) -> str:
    return publish_adapter(services, "ours", tmp_path / "reward", kind="reward")


async def test_a_reward_adapter_scores_the_conversation_that_is_the_input(
    client: httpx.AsyncClient, inference: Inference, services: Services, reward_id: str
) -> None:
    found = await run(client, WEIGHED | {"model": reward_id, "pass_threshold": 2}, "it is 7")
    (asked,) = inference.asked
    (ids,) = asked["inputs"]
    assert asked["model"] == reward_id
    assert text_of(services, ids) == "<|user|>say 7<|end|><|assistant|>it is 7<|end|>"
    assert (found["reward"], found["passed"]) == (len(ids) / 4, True)
    assert found["metadata"]["sampled_model_name"] == reward_id
    assert found["model_grader_token_usage_per_model"] == {reward_id: USAGE}


async def test_a_reward_adapter_and_a_judge_are_parts_of_one_grader(
    client: httpx.AsyncClient, inference: Inference, reward_id: str
) -> None:
    weighed = WEIGHED | {"model": reward_id, "range": [-1, 1]}
    grader = {
        "type": "multi",
        "graders": {"a": weighed, "b": weighed | {"range": None}},
        "calculate_output": "a + b",
    }
    found = await run(client, grader)
    length = len(inference.asked[0]["inputs"][0])
    assert found["sub_rewards"] == {"a": 1.0, "b": length / 4}
    assert found["metadata"]["token_usage"]["total_tokens"] == 2 * USAGE["total_tokens"]


@pytest.mark.parametrize(
    "turns", [WEIGHED["input"][:1], WEIGHED["input"][1:], WEIGHED["input"][::-1]]
)
async def test_an_input_without_an_answer_to_a_prompt_has_no_score(
    client: httpx.AsyncClient, inference: Inference, reward_id: str, turns: Any
) -> None:
    grader = WEIGHED | {"model": reward_id, "input": turns}
    body = {"grader": grader, "model_sample": "x", "item": ITEM}
    answer = await client.post("/graders/run", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (422, "reward_input_invalid")
    assert error["param"] == "grader.input"
    assert inference.asked == []


async def test_an_answer_that_the_template_leaves_out_has_no_score(
    client: httpx.AsyncClient, inference: Inference, services: Services, tmp_path: Path
) -> None:
    silent = "{% for m in messages[:1] %}<|user|>{{ m.content }}{% endfor %}"
    adapter_id = publish_adapter(
        services, "ours", tmp_path / "a", kind="reward", chat_template=silent
    )
    body = {"grader": WEIGHED | {"model": adapter_id}, "model_sample": "x", "item": ITEM}
    answer = await client.post("/graders/run", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (422, "reward_input_invalid")
    assert error["param"] == "grader.input"
    assert inference.asked == []


async def test_a_foreign_reward_adapter_is_unknown(
    client_of: Callable[[str], httpx.AsyncClient], inference: Inference, reward_id: str
) -> None:
    grader = WEIGHED | {"model": reward_id}
    body = {"grader": grader, "model_sample": "x", "item": ITEM}
    foreign = await client_of("theirs").post("/graders/run", json=body)
    made_up = grader["model"] = "ad_" + "0" * 24
    unknown = await client_of("theirs").post("/graders/run", json=body | {"grader": grader})
    assert foreign.status_code == unknown.status_code == 404
    assert foreign.content.replace(reward_id.encode(), made_up.encode()) == unknown.content


@pytest.mark.parametrize(("theirs", "ours"), [(422, 422), (429, 429), (503, 503), (500, 502)])
async def test_a_refusal_of_the_inference_server_goes_through(
    client: httpx.AsyncClient, inference: Inference, theirs: int, ours: int
) -> None:
    refusal = {"message": "no", "type": "x", "param": None, "code": "adapter_mismatch"}
    inference.answer = JSONResponse({"error": refusal}, theirs)
    answer = await client.post("/graders/run", json={"grader": SCORE, "model_sample": "x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (ours, "adapter_mismatch")


async def test_an_inference_server_that_is_down_fails_the_run_and_not_the_sample(
    client: httpx.AsyncClient, services: Services
) -> None:
    await services.http.aclose()
    services.http = httpx.AsyncClient(base_url="http://127.0.0.1:9")
    answer = await client.post("/graders/run", json={"grader": SCORE, "model_sample": "x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "generator_unavailable")


@pytest.mark.parametrize("name", ATTACKS)
async def test_an_attack_is_answered_as_the_engine_says(
    client: httpx.AsyncClient, name: str
) -> None:
    attack = ATTACKS[name]
    sample = attack.get("sample", "")
    if not isinstance(sample, str):
        sample = sample["text"] * sample["times"] + sample["end"]
    body = {"grader": attack["grader"], "model_sample": sample, "item": {"secret": "canary-7"}}
    answer = await client.post("/graders/run", json=body)
    assert "canary-7" not in answer.text
    if "problem" in attack:
        assert answer.status_code == 422
        assert answer.json()["error"]["message"] == attack["problem"]
        return
    assert answer.status_code == 200, answer.text
    assert answer.json()["reward"] == attack.get("reward", 0)
    assert answer.json()["metadata"]["errors"]["details"] == (
        [attack["fault"]] if "fault" in attack else []
    )


@pytest.mark.parametrize(
    "body",
    [
        '{"grader": {"type": "length", "maximum": 1}, "model_sample": "\\ud800"}',
        '{"grader": {"type": "length", "maximum": 1}, "model_sample": "x", "item": {"a": NaN}}',
        '{"grader": {"type": "length", "maximum": 1}, "model_sample": "x", "item": {"a": 1e999}}',
        '{"grader": ' + '{"graders": {"a": ' * 400,
    ],
)
async def test_a_body_that_is_no_json_is_unreadable(client: httpx.AsyncClient, body: str) -> None:
    headers = {"content-type": "application/json"}
    answer = await client.post("/graders/run", content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "malformed_json")


async def test_a_tree_as_deep_as_json_may_be_is_refused(client: httpx.AsyncClient) -> None:
    grader: dict[str, Any] = {"type": "length", "maximum": 1}
    for _ in range(60):
        grader = {"type": "multi", "graders": {"a": grader}, "calculate_output": "a"}
    answer = await client.post("/graders/validate", json={"grader": grader})
    assert answer.status_code == 422


async def test_others_are_answered_while_a_grader_thinks(
    app: FastAPI, client: httpx.AsyncClient
) -> None:
    attack = ATTACKS["schema that doubles"]
    body = {"grader": attack["grader"], "model_sample": attack["sample"]}
    slow = asyncio.create_task(client.post("/graders/run", json=body))
    await asyncio.sleep(0.05)
    assert (await client.get("/jobs")).status_code == 200
    assert not slow.done()
    assert (await slow).status_code == 200
