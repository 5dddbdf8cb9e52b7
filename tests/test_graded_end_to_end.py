"""Graders that ask a model, as rewards of jobs: what trains is what POST /graders/run says."""

import json
from statistics import fmean
from typing import Any

import httpx
import pytest

from tests.test_end_to_end import (  # noqa: F401  # two of them are fixtures
    Serve,
    base,
    follow,
    serve,
    train,
    upload,
)
from tests.workers import REPO

TINY = REPO / "examples" / "models" / "luthier-tiny"
QUESTIONS = 8
# So cold that what is sampled is what is likeliest, and so slow that nothing changes.
FROZEN: dict[str, Any] = {
    "type": "grpo",
    "num_generations": 2,
    "per_device_batch_size": 2 * QUESTIONS,
    "temperature": 1e-4,
    "learning_rate": 1e-9,
    "max_length": 64,
    "max_completion_length": 24,
    "max_steps": 2,
}
SHORT = {"type": "length", "unit": "words", "minimum": 1, "maximum": 8}


def example(name: str) -> list[dict[str, Any]]:
    lines = (REPO / "examples" / "data" / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def likeliest(client: httpx.Client, question: str) -> str:
    body = {"prompt": None, "messages": [{"role": "user", "content": question}]}
    limits = {"temperature": 0, "max_tokens": FROZEN["max_completion_length"]}
    answer = client.post("/generate", json={k: v for k, v in body.items() if v} | limits)
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["text"]
    return text


def said(client: httpx.Client, grader: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """What POST /graders/run makes of the likeliest answer."""
    sample = likeliest(client, row["prompt"])
    body = {"grader": grader, "model_sample": sample, "item": row["item"]}
    answer = client.post("/graders/run", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def rewards(client: httpx.Client, job: dict[str, Any]) -> list[float]:
    steps = [event["data"] for event in follow(client, job["id"]) if event["type"] == "metrics"]
    return [step["reward"] for step in steps if "reward" in step]


@pytest.mark.slow
def test_what_a_grader_asks_of_models_is_the_reward_that_post_graders_run_gives(
    serve: Serve,  # noqa: F811  # the fixture
) -> None:
    client = serve(base_models=json.dumps({"tiny": str(TINY)}))
    rows = example("prompts")[:QUESTIONS]
    prompts = upload(client, rows)["id"]
    learn = {"type": "reward", "max_steps": 10, "learning_rate": 2e-3, "max_length": 64}
    pairs = upload(client, example("preference")[:120])["id"]
    reward = train(client, pairs, method=learn, peft={"type": "lora", "r": 4})["adapter_id"]
    answered = [
        {"role": "user", "content": "{{ item.question }}"},
        {"role": "assistant", "content": "{{ sample.output_text }}"},
    ]
    rubric = [{"role": "user", "content": "Rate: {{ sample.output_text }}"}]
    weighed = {"type": "score_model", "model": reward, "input": answered}
    judge = {"type": "score_model", "model": "tiny", "input": rubric}
    graders: dict[str, dict[str, Any]] = {
        "weighed": {
            "type": "multi",
            "graders": {"kind": weighed, "short": SHORT},
            "calculate_output": "kind + 2 * short",
        },
        "judged": judge,
    }

    for name, grader in graders.items():
        method = FROZEN | {"grader": grader}
        job = train(client, prompts, method=method, peft={"type": "lora", "r": 2})
        results = [said(client, grader, row) for row in rows]
        each = [result["reward"] for result in results]
        assert len(set(each)) > 1, (name, each)
        found = rewards(client, job)
        assert found == pytest.approx([fmean(each)] * 2, abs=1e-4), (name, each)
        adapter = client.get(f"/adapters/{job['adapter_id']}").json()
        assert json.dumps(grader["type"]) in json.dumps(adapter)
        assert "127.0.0.1" not in json.dumps(adapter)

    missing = {"type": "score_model", "model": "ad_" + "0" * 24, "input": answered}
    body = {"base_model": "tiny", "dataset": prompts, "method": FROZEN | {"grader": missing}}
    assert client.post("/jobs", json=body).status_code == 404
    refused = client.post(
        "/jobs", json=body | {"method": FROZEN | {"grader": judge | {"model": "x"}}}
    )
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (
        422,
        "model_unknown",
        "method.grader.model",
    )
