"""Jobs with graders that ask a model, over HTTP: what the inference server cannot run is told."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.services import Services
from tests.api.inference import Inference
from tests.api.making import publish_adapter

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("connected")]

RUBRIC = [{"role": "user", "content": "Rate: {{ sample.output_text }}"}]
JUDGE = {"type": "score_model", "model": "tiny", "input": RUBRIC}
FIELD = "method.grader.graders.good.model"


@pytest.fixture
async def prompts(client: httpx.AsyncClient) -> str:
    lines = "".join(json.dumps({"prompt": f"say {n}"}) + "\n" for n in range(60))
    answer = await client.post("/datasets?name=prompts.jsonl", content=lines)
    assert answer.status_code == 201, answer.text
    found: str = answer.json()["id"]
    return found


def body(prompts: str, judge: dict[str, Any]) -> dict[str, Any]:
    parts = {"good": judge, "short": {"type": "length", "maximum": 9}}
    grader = {"type": "multi", "graders": parts, "calculate_output": "good + short"}
    method = {"type": "grpo", "grader": grader, "max_length": 32, "max_completion_length": 8}
    peft = {"type": "lora", "r": 2, "target_modules": ["q_proj"]}
    return {"base_model": "tiny", "dataset": prompts, "method": method, "peft": peft}


async def test_a_judge_of_a_base_that_is_loaded_is_taken(
    client: httpx.AsyncClient, prompts: str, services: Services, tmp_path: Path
) -> None:
    adapter_id = publish_adapter(services, "ours", tmp_path / "a")
    for model in ("tiny", adapter_id):
        answer = await client.post("/jobs", json=body(prompts, JUDGE | {"model": model}))
        assert answer.status_code == 201, answer.text
        graders = answer.json()["method"]["grader"]["graders"]
        assert graders["good"]["model"] == model
    in_use = await client.delete(f"/adapters/{adapter_id}")
    assert (in_use.status_code, in_use.json()["error"]["code"]) == (409, "in_use")


@pytest.mark.parametrize("path", ["/jobs", "/jobs/estimate", "/pipelines"])
async def test_a_judge_of_a_base_that_is_not_loaded_is_refused(
    client: httpx.AsyncClient, prompts: str, inference: Inference, path: str
) -> None:
    inference.models = [{"id": "other", "parent": None}, {"id": "tiny", "parent": "other"}]
    job = body(prompts, JUDGE)
    answer = await client.post(path, json={"stages": {"a": job}} if "pipe" in path else job)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (422, "judge_not_served")
    assert error["param"] == ("stages.a." if "pipe" in path else "") + FIELD
    assert "loaded other, not 'tiny'" in error["message"]


async def test_a_job_is_taken_while_the_inference_server_is_away(
    client: httpx.AsyncClient, prompts: str, services: Services
) -> None:
    await services.http.aclose()
    services.http = httpx.AsyncClient(base_url="http://127.0.0.1:9")
    answer = await client.post("/jobs", json=body(prompts, JUDGE))
    assert answer.status_code == 201, answer.text


async def test_a_foreign_adapter_in_a_grader_is_as_unknown_as_one_that_is_not_there(
    client: httpx.AsyncClient,
    client_of: Callable[[str], httpx.AsyncClient],
    prompts: str,
    services: Services,
    tmp_path: Path,
) -> None:
    theirs = publish_adapter(services, "theirs", tmp_path / "a", kind="reward")
    made_up = "ad_" + "0" * 24
    foreign = await client.post("/jobs", json=body(prompts, JUDGE | {"model": theirs}))
    unknown = await client.post("/jobs", json=body(prompts, JUDGE | {"model": made_up}))
    assert foreign.status_code == unknown.status_code == 404
    assert foreign.content.replace(theirs.encode(), made_up.encode()) == unknown.content


async def test_an_estimate_has_the_reward_adapter_of_a_grader_and_no_judge(
    client: httpx.AsyncClient, prompts: str, services: Services, tmp_path: Path
) -> None:
    reward = publish_adapter(services, "ours", tmp_path / "a", kind="reward")
    turns = [*RUBRIC, {"role": "assistant", "content": "{{ sample.output_text }}"}]
    found = {}
    for model, said in {reward: turns, "tiny": RUBRIC}.items():
        job = body(prompts, JUDGE | {"model": model, "input": said})
        answer = await client.post("/jobs/estimate", json=job)
        assert answer.status_code == 200, answer.text
        found[model] = answer.json()["memory"]
    assert "on the policy's base" in found[reward]["reward"]["basis"]
    assert "reward" not in found["tiny"]
