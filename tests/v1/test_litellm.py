"""LiteLLM as a proxy in front of `luthier serve`, asked by OpenAI's own client."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.servers import free_port
from tests.v1.clients import environment, needs, program
from tests.v1.house import BASE, DATA, House

pytestmark = needs("litellm")

START_S = 120
MASTER = "sk-of-the-proxy"
QUESTION = json.loads((DATA / "demo_heldout.jsonl").read_text().splitlines()[0])["messages"]
ASKED: dict[str, Any] = {"messages": QUESTION, "temperature": 0, "max_tokens": 96}


@pytest.fixture(scope="module")
def proxied(house: House, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """A client of LiteLLM, which knows the base and the adapter by names of its own."""
    folder, port = tmp_path_factory.mktemp("litellm"), free_port()
    behind = {"api_base": house.v1, "api_key": house.key}
    models = {
        "base": f"openai/{BASE}",
        "tuned": f"openai/{house.adapter_id}",
        "older": f"text-completion-openai/{house.adapter_id}",
    }
    config = {
        "model_list": [
            {"model_name": name, "litellm_params": behind | {"model": model}}
            for name, model in models.items()
        ],
        "litellm_settings": {"num_retries": 0},
        "general_settings": {"master_key": MASTER},
    }
    (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    command = [
        *(str(program("litellm")), "--config", str(folder / "config.yaml")),
        *("--host", "127.0.0.1", "--port", str(port)),
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment(), stdout=log, stderr=log)
        try:
            _wait(f"http://127.0.0.1:{port}/health/liveliness", process, folder / "log")
            url = f"http://127.0.0.1:{port}/v1"
            with openai.OpenAI(base_url=url, api_key=MASTER, max_retries=0, timeout=60) as client:
                yield client
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-4000:]
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise AssertionError(log.read_text()[-4000:])


@pytest.fixture(scope="module")
def direct(house: House) -> dict[str, str | None]:
    """What Luthier answers without the proxy."""
    with openai.OpenAI(base_url=house.v1, api_key=house.key) as client:
        return {
            name: client.chat.completions.create(model=model, **ASKED).choices[0].message.content
            for name, model in (("base", BASE), ("tuned", house.adapter_id))
        }


@pytest.mark.parametrize("model", ["base", "tuned"])
def test_chats_come_through(
    proxied: openai.OpenAI, direct: dict[str, str | None], model: str
) -> None:
    answer = proxied.chat.completions.create(model=model, **ASKED)
    assert answer.choices[0].message.content == direct[model]
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0
    assert direct["base"] != direct["tuned"]


def test_streams_come_through(proxied: openai.OpenAI, direct: dict[str, str | None]) -> None:
    options: Any = {"include_usage": True}
    chunks = list(
        proxied.chat.completions.create(model="tuned", stream=True, stream_options=options, **ASKED)
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == direct["tuned"]
    assert len(chunks) > 3
    assert any(chunk.usage is not None for chunk in chunks)


def test_completions_come_through(proxied: openai.OpenAI, house: House) -> None:
    asked: dict[str, Any] = {"prompt": "Once upon", "temperature": 0, "max_tokens": 6}
    with openai.OpenAI(base_url=house.v1, api_key=house.key) as client:
        expected = client.completions.create(model=house.adapter_id, **asked)
    answer = proxied.completions.create(model="older", **asked)
    assert answer.choices[0].text == expected.choices[0].text
    pieces = proxied.completions.create(model="older", stream=True, **asked)
    streamed = "".join(piece.choices[0].text or "" for piece in pieces if piece.choices)
    assert streamed == expected.choices[0].text


def test_schemas_and_log_probs_come_through(proxied: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"yes": {"type": "boolean"}},
        "required": ["yes"],
        "additionalProperties": False,
    }
    kept: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    answer = proxied.chat.completions.create(model="base", response_format=kept, **ASKED)
    assert set(json.loads(answer.choices[0].message.content or "")) == {"yes"}
    scored = proxied.chat.completions.create(model="tuned", logprobs=True, top_logprobs=2, **ASKED)
    assert scored.choices[0].logprobs is not None
    found = scored.choices[0].logprobs.content or []
    assert all(len(each.top_logprobs) == 2 for each in found)
    assert "".join(each.token for each in found[:-1]) == scored.choices[0].message.content


def test_a_refusal_keeps_its_status(proxied: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        proxied.chat.completions.create(model="tuned", **ASKED | {"temperature": 9})
    assert caught.value.status_code in (400, 422)
    assert "temperature" in caught.value.message
