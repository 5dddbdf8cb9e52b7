"""Luthier twice over the same jobs and objects: once it generates itself, once through vLLM."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.servers import S3Server
from tests.vllm.server import MAX_RANK, storage_settings
from tests.workers import REPO

DATA = REPO / "examples" / "data"
GREEDY = {"temperature": 0, "max_tokens": 48}


class Two:
    """`ours` is a service whose generator is Luthier's own, `vllm` one whose generator is vLLM."""

    def __init__(self, ours: httpx.Client, vllm: httpx.Client, direct: httpx.Client) -> None:
        self.ours, self.vllm, self.direct = ours, vllm, direct

    def upload(self, rows: list[dict[str, Any]]) -> str:
        data = "\n".join(map(json.dumps, rows)).encode()
        headers = {"content-type": "application/jsonl"}
        answer = self.ours.post("/datasets", params={"name": "rows"}, content=data, headers=headers)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def train(self, dataset_id: str, peft: dict[str, Any], **method: Any) -> str:
        """The id of an adapter that the real service trained."""
        body = {
            "base_model": "luthier-tiny",
            "dataset": dataset_id,
            "method": {"type": "sft", "max_steps": 25, "learning_rate": 2e-3} | method,
            "peft": peft,
        }
        answer = self.ours.post("/jobs", json=body)
        assert answer.status_code == 201, answer.text
        return self.finish(str(answer.json()["id"]))

    def finish(self, job_id: str) -> str:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            job = self.ours.get(f"/jobs/{job_id}").json()
            if job["status"] not in ("queued", "running"):
                assert job["status"] == "succeeded", job
                return str(job["adapter_id"])
            time.sleep(0.3)
        raise AssertionError(f"{job_id} did not end")


def rows(skip: int, count: int) -> list[dict[str, Any]]:
    lines = (DATA / "demo_train.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[skip : skip + count]]


def questions(count: int) -> list[list[dict[str, str]]]:
    """Conversations that nobody has trained on."""
    lines = (DATA / "demo_heldout.jsonl").read_text().splitlines()[:count]
    found = [json.loads(line)["messages"] for line in lines]
    return [[each for each in messages if each["role"] != "assistant"] for messages in found]


def generate(client: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = client.post("/generate", json=GREEDY | body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return {name: found.get(name) for name in ("text", "finish_reason", "usage", "logprobs")}


def streamed(client: httpx.Client, **body: Any) -> dict[str, Any]:
    """A streamed answer, put together."""
    text, last = "", {}
    asked = GREEDY | body | {"stream": True}
    with client.stream("POST", "/generate", json=asked) as stream:
        assert stream.status_code == 200
        lines = [line for line in stream.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    for line in lines[:-1]:
        last = json.loads(line.removeprefix("data: "))
        text += last["text"]
    return {"text": text, "finish_reason": last["finish_reason"], "usage": last["usage"]}


@contextmanager
def two(data_dir: Path, s3: S3Server, vllm_url: str) -> Iterator[Two]:
    shared = {"LUTHIER_DATA_DIR": str(data_dir)} | storage_settings(s3)
    through = {
        "LUTHIER_GENERATOR": "vllm",
        "LUTHIER_VLLM_URL": vllm_url,
        "LUTHIER_VLLM_MAX_LORA_RANK": str(MAX_RANK),
    }
    serve = ["serve", "--port", "0", "--inference-port", "0"]
    with _running(serve, shared) as process:
        url = _announced(data_dir / "serve.json", process)
        key = (data_dir / "key").read_text().strip()
        with _running(["api", "--port", "0"], shared | through) as api, _clients() as make:
            other = _listening(api)
            yield Two(make(url, key), make(other, key), make(vllm_url, ""))


@contextmanager
def _clients() -> Iterator[Any]:
    made: list[httpx.Client] = []

    def make(url: str, key: str) -> httpx.Client:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        made.append(httpx.Client(base_url=url, headers=headers, timeout=120))
        return made[-1]

    try:
        yield make
    finally:
        for client in made:
            client.close()


@contextmanager
def _running(arguments: list[str], settings: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", *arguments],
        cwd=REPO,
        env={**os.environ, **settings, "LUTHIER_LOG_FORMAT": "json"},  # noqa: TID251  # a child's
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=90)


def _announced(note: Path, process: subprocess.Popen[str]) -> str:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        if note.exists() and (said := note.read_text()) and (url := json.loads(said)["url"]):
            return str(url)
        time.sleep(0.1)
    raise AssertionError("serve did not come up")


def _listening(process: subprocess.Popen[str]) -> str:
    """Where an API says that it listens; the rest of its log is few lines, which a pipe holds."""
    assert process.stdout is not None
    for line in process.stdout:
        if '"http.listening"' in line:
            return str(json.loads(line)["url"])
    raise AssertionError("the API ended while it started")
