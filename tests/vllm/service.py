"""Luthier twice over the same jobs and objects: once it generates itself, once through vLLM."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
    note, log = data_dir / "serve.json", data_dir.with_name("api.log")
    with _running(serve, shared, data_dir.with_name("serve.log")) as process:
        url = _said_within(process, lambda: json.loads(note.read_text() or "{}").get("url"))
        key = (data_dir / "key").read_text().strip()
        with _running(["api", "--port", "0"], shared | through, log) as api, _clients() as make:
            other = _said_within(api, lambda: _listening(log))
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
def _running(
    arguments: list[str], settings: dict[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", *arguments],
            cwd=REPO,
            env={**os.environ, **settings, "LUTHIER_LOG_FORMAT": "json"},  # noqa: TID251  # a child's
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(90)


def _said_within(process: subprocess.Popen[bytes], look: Callable[[], str | None]) -> str:
    """What a process says of itself, once it does."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, "it ended while it started"
        with suppress(FileNotFoundError):
            if found := look():
                return found
        time.sleep(0.1)
    raise AssertionError("it did not come up")


def _listening(log: Path) -> str | None:
    lines = [line for line in log.read_text().splitlines() if '"http.listening"' in line]
    return str(json.loads(lines[0])["url"]) if lines else None
