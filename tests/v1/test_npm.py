"""OpenAI's SDK for JavaScript, as npm has it, against `luthier serve`."""

import json
from typing import Any

import openai
import pytest

from tests.v1.clients import HERE, needs, node, run
from tests.v1.house import BASE, DATA, House

pytestmark = needs("node")

QUESTION = json.loads((DATA / "demo_heldout.jsonl").read_text().splitlines()[0])["messages"]


@pytest.fixture(scope="module")
def said(house: House) -> dict[str, Any]:
    """What tests/v1/npm/client.mjs saw."""
    names = {"LUTHIER_V1": house.v1, "LUTHIER_KEY": house.key}
    names |= {"LUTHIER_MODEL": BASE, "LUTHIER_TUNED": house.adapter_id}
    text = QUESTION[-1]["content"]
    found: dict[str, Any] = json.loads(run(node(), "client.mjs", text, cwd=HERE / "npm", **names))
    return found


def test_it_gets_what_the_python_sdk_gets(said: dict[str, Any], house: House) -> None:
    with openai.OpenAI(base_url=house.v1, api_key=house.key) as client:
        for name, model in (("base", BASE), ("tuned", house.adapter_id)):
            answer = client.chat.completions.create(
                model=model, messages=QUESTION, temperature=0, max_completion_tokens=96
            )
            assert said[name] == answer.choices[0].message.content
    assert said["base"] != said["tuned"]


def test_its_streams_add_up(said: dict[str, Any]) -> None:
    assert said["streamed"]["text"] == said["helped"] == said["tuned"]
    assert said["streamed"]["usage"]["completion_tokens"] > 0


def test_schemas_prompts_and_errors_come_through(said: dict[str, Any]) -> None:
    assert said["kept"] in ({"yes": True}, {"yes": False})
    assert len(said["continued"]["tokens"]) == 5
    assert "".join(said["continued"]["tokens"]) == said["continued"]["text"]
    refused = said["refused"]
    assert refused.pop("requestID")
    assert refused == {
        "kind": "NotFoundError",
        "status": 404,
        "code": "model_not_found",
        "param": "model",
        "type": "not_found_error",
    }
