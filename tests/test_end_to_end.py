"""The user's path through real processes: upload, train, generate, take away, bring back."""

import io
import json
import os
import secrets
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from jobs.store import Store
from tests.bases import make_base
from tests.servers import S3Server
from tests.workers import REPO, conversations

Serve = Callable[..., httpx.Client]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def serve(base: Path, tmp_path: Path) -> Iterator[Serve]:
    """Starts `luthier serve` for one test."""
    with starting(base, tmp_path / "data") as start:
        yield start


@pytest.fixture(scope="module")
def client(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Of a `luthier serve` that tests share."""
    with starting(base, tmp_path_factory.mktemp("shared") / "data") as start:
        yield start()


@contextmanager
def starting(base: Path, data_dir: Path) -> Iterator[Serve]:
    """Starts `luthier serve` on free ports; a client with the first key. All of it ends after."""
    running: list[subprocess.Popen[str]] = []
    clients: list[httpx.Client] = []

    def start(**settings: str) -> httpx.Client:
        environment = {
            **os.environ,  # noqa: TID251  # the service needs the test's own
            "LUTHIER_BASE_MODELS": json.dumps({"tiny": str(base)}),
            **{f"LUTHIER_{name.upper()}": value for name, value in settings.items()},
        }
        ports = ["--port", "0", "--inference-port", "0", "--data-dir", str(data_dir)]
        process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", "serve", *ports],
            cwd=REPO,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        url = _announced(data_dir, process)
        key = (data_dir / "key").read_text().strip()
        clients.append(
            httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=60)
        )
        return clients[-1]

    try:
        yield start
    finally:
        for client in clients:
            client.close()
        for process in running:
            if process.poll() is not None:
                process.communicate()
                continue  # it never came up, and its test has said so
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(True)]
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=120)
            _, alive = psutil.wait_procs(family, timeout=60)
            assert not alive, "the service left something running"


def _announced(data_dir: Path, process: subprocess.Popen[str]) -> str:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        assert process.poll() is None, "serve ended while starting"
        try:
            note = json.loads((data_dir / "serve.json").read_text())
        except (OSError, ValueError):
            note = {}
        if note.get("url"):
            return str(note["url"])
        time.sleep(0.1)
    raise AssertionError("serve did not come up")


def upload(client: httpx.Client, rows: list[dict[str, Any]]) -> dict[str, Any]:
    data = "\n".join(map(json.dumps, rows)).encode()
    headers = {"content-type": "application/jsonl"}
    answer = client.post("/datasets", params={"name": "rows"}, content=data, headers=headers)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def follow(client: httpx.Client, job_id: str) -> list[dict[str, Any]]:
    """Every event of a job, from its stream, to the end."""
    headers = {"accept": "text/event-stream"}
    events = []
    with client.stream("GET", f"/jobs/{job_id}/events", headers=headers, timeout=120) as stream:
        for line in stream.iter_lines():
            if line.startswith("data: "):
                events.append(json.loads(line.removeprefix("data: ")))
    return events


def train(client: httpx.Client, dataset_id: str, **spec: Any) -> dict[str, Any]:
    body = {
        "base_model": "tiny",
        "dataset": dataset_id,
        "method": {"type": "sft", "num_train_epochs": 6, "learning_rate": 5e-3},
        "peft": {"type": "lora", "r": 8},
        **spec,
    }
    answer = client.post("/jobs", json=body, headers={"idempotency-key": secrets.token_hex(8)})
    assert answer.status_code == 201, answer.text
    follow(client, answer.json()["id"])
    job: dict[str, Any] = client.get(f"/jobs/{answer.json()['id']}").json()
    assert job["status"] == "succeeded", job
    return job


def generate(client: httpx.Client, **body: Any) -> dict[str, Any]:
    asked = {
        "messages": [{"role": "user", "content": "say 7"}],
        "temperature": 0,
        "max_tokens": 12,
        "logprobs": 0,
    }
    answer = client.post("/generate", json=asked | body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def streamed(client: httpx.Client, **body: Any) -> str:
    asked = {"messages": [{"role": "user", "content": "say 7"}], "temperature": 0, "max_tokens": 12}
    text = ""
    with client.stream("POST", "/generate", json=asked | body | {"stream": True}) as stream:
        assert stream.status_code == 200
        lines = [line for line in stream.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    for line in lines[:-1]:
        text += json.loads(line.removeprefix("data: "))["text"]
    return text


def check_events(client: httpx.Client, job: dict[str, Any]) -> None:
    events = follow(client, job["id"])
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    steps = [event["data"] for event in events if event["type"] == "metrics"]
    assert [step["step"] for step in steps] == list(range(1, job["progress"]["total_steps"] + 1))
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.5
    states = [event["data"]["status"] for event in events if event["type"] == "state"]
    assert states == ["queued", "running", "succeeded"]


def check_download(client: httpx.Client, job: dict[str, Any], base: Path, folder: Path) -> bytes:
    """A plain PeftModel loads what was downloaded, and says what the service says."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    archive = client.get(f"/adapters/{job['adapter_id']}/download").read()
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    config = next(folder.rglob("adapter_config.json"))
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), config.parent)
    tokenizer = AutoTokenizer.from_pretrained(base)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "say 7"}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    with torch.no_grad():
        ids = model.generate(input_ids=prompt, max_new_tokens=12, do_sample=False)
    text = tokenizer.decode(ids[0, prompt.shape[1] :], skip_special_tokens=True)
    assert text == generate(client, adapter_id=job["adapter_id"])["text"]
    return archive


def test_the_whole_path_on_one_machine(serve: Serve, base: Path, tmp_path: Path) -> None:
    client = serve()
    assert client.get("/readyz").status_code == 200

    dataset = upload(client, conversations(60))
    assert (dataset["row_type"], dataset["rows"], dataset["warnings"]) == ("conversation", 60, [])
    few = upload(client, conversations(3))
    assert "few-shot" in few["warnings"][0].lower()
    preview = client.get(f"/datasets/{dataset['id']}/preview", params={"limit": 1}).json()
    tokens = preview["data"][0]["tokens"]
    assert "".join(token["text"] for token in tokens if token["trained"]) == "number 0 it is</s>"
    statistics = client.get(f"/datasets/{dataset['id']}/statistics").json()
    assert (statistics["rows"], statistics["empty_mask"], statistics["truncated"]) == (60, 0, 0)

    job = train(client, dataset["id"])
    check_events(client, job)
    adapter = client.get(f"/adapters/{job['adapter_id']}").json()
    assert adapter["base_model"] == "tiny"

    plain, tuned = generate(client), generate(client, adapter_id=job["adapter_id"])
    assert plain["logprobs"] != tuned["logprobs"]
    assert streamed(client) == plain["text"]
    assert streamed(client, adapter_id=job["adapter_id"]) == tuned["text"]

    archive = check_download(client, job, base, tmp_path / "taken")
    imported = client.post(
        "/adapters/import", params={"base_model": "tiny", "name": "back"}, content=archive
    )
    assert imported.status_code == 201, imported.text
    again = generate(client, adapter_id=imported.json()["id"])
    assert again["text"] == tuned["text"]

    full = train(
        client,
        dataset["id"],
        peft={"type": "full"},
        method={"type": "sft", "num_train_epochs": 2, "learning_rate": 1e-3},
    )
    assert generate(client, adapter_id=full["adapter_id"])["logprobs"] != plain["logprobs"]

    assert client.delete(f"/adapters/{job['adapter_id']}").status_code == 200
    gone = client.post("/generate", json={"prompt": "a", "adapter_id": job["adapter_id"]})
    assert gone.status_code == 404
    assert gone.json()["error"]["code"] == "not_found"


def check_in_peft(client: httpx.Client, adapter_id: str, base: Path, folder: Path) -> bytes:
    """PEFT's own forward, token by token, says what the service says."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    archive = client.get(f"/adapters/{adapter_id}/download").read()
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    messages = [{"role": "user", "content": "say 7"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    ids = list(prompt)
    with torch.no_grad():
        while len(ids) < len(prompt) + 12 and (ids == prompt or ids[-1] != tokenizer.eos_token_id):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    text = tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)
    assert text == generate(client, adapter_id=adapter_id)["text"]
    return archive


@pytest.mark.parametrize(
    ("peft", "kind"),
    [
        ({"type": "lora", "r": 4, "use_dora": True}, "lora"),
        ({"type": "qlora", "r": 4}, "lora"),
        ({"type": "prompt_tuning", "num_virtual_tokens": 6}, "prompt_tuning"),
        ({"type": "prefix_tuning", "num_virtual_tokens": 6}, "prefix_tuning"),
    ],
    ids=["dora", "qlora", "prompt_tuning", "prefix_tuning"],
)
def test_a_kind_of_peft_goes_there_and_back_again(
    client: httpx.Client, base: Path, tmp_path: Path, peft: dict[str, Any], kind: str
) -> None:
    if peft["type"] == "qlora":
        pytest.importorskip("bitsandbytes")
    dataset = upload(client, conversations(60))
    rate = 0.01 if kind == "lora" else 0.1
    method = {"type": "sft", "max_steps": 10, "learning_rate": rate, "max_length": 64}
    job = train(client, dataset["id"], peft=peft, method=method)
    assert job["peft"] == peft | job["peft"]
    adapter = client.get(f"/adapters/{job['adapter_id']}").json()
    assert (adapter["kind"], adapter["peft"]) == (kind, job["peft"])

    plain, tuned = generate(client), generate(client, adapter_id=job["adapter_id"])
    assert plain["logprobs"] != tuned["logprobs"]
    assert plain["usage"]["prompt_tokens"] == tuned["usage"]["prompt_tokens"]
    archive = check_in_peft(client, job["adapter_id"], base, tmp_path / "taken")
    imported = client.post("/adapters/import", params={"base_model": "tiny"}, content=archive)
    assert imported.status_code == 201, imported.text
    assert imported.json()["kind"] == kind
    again = generate(client, adapter_id=imported.json()["id"])
    assert again["text"] == tuned["text"]


def preference(number: int) -> dict[str, Any]:
    """A row whose better answer says the number."""
    prompt = [{"role": "user", "content": f"say {number}"}]
    return {"prompt": prompt, "chosen": f"the number is {number}", "rejected": "it is a number"}


def score(client: httpx.Client, adapter_id: str, row: dict[str, Any]) -> list[float]:
    """What a reward model gives to the chosen and the rejected answer of a row."""
    answers = [row["chosen"], row["rejected"]]
    body = {"adapter_id": adapter_id, "messages": row["prompt"], "completions": answers}
    answer = client.post("/score", json=body)
    assert answer.status_code == 200, answer.text
    return [each["score"] for each in answer.json()["data"]]


def preferred(scores: list[list[float]]) -> float:
    """The part of the pairs whose chosen answer has the higher score."""
    return sum(chosen > rejected for chosen, rejected in scores) / len(scores)


def expected_scores(archive: bytes, base: Path, folder: Path, row: dict[str, Any]) -> list[float]:
    """What transformers and PEFT make of what was downloaded, and of the same row."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    is_peft = (folder / "adapter_config.json").exists()
    model = AutoModelForSequenceClassification.from_pretrained(
        base if is_peft else folder, num_labels=1
    )
    model = (PeftModel.from_pretrained(model, folder) if is_peft else model).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    found = []
    for name in ("chosen", "rejected"):
        said = [*row["prompt"], {"role": "assistant", "content": row[name]}]
        ids = tokenizer.apply_chat_template(said, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            found.append(model(input_ids=ids).logits.item())
    return found


def test_a_reward_model_prefers_what_was_preferred(
    client: httpx.Client, base: Path, tmp_path: Path
) -> None:
    rows = [preference(number) for number in range(60)]
    dataset = upload(client, [row for number, row in enumerate(rows) if number % 4])
    held_out = rows[::4]
    method = {"type": "reward", "max_steps": 30, "learning_rate": 5e-3, "max_length": 64}
    pefts: dict[str, dict[str, Any]] = {
        "lora": {"type": "lora", "r": 4},
        "dora": {"type": "lora", "r": 4, "use_dora": True},
        "full": {"type": "full"},
    }
    for name, peft in pefts.items():
        rate = 1e-3 if name == "full" else 5e-3
        job = train(client, dataset["id"], peft=peft, method=method | {"learning_rate": rate})
        adapter = client.get(f"/adapters/{job['adapter_id']}").json()
        assert adapter["kind"] == "reward"
        scores = [score(client, adapter["id"], row) for row in held_out]
        assert preferred(scores) >= 0.9, name
        archive = client.get(f"/adapters/{adapter['id']}/download").read()
        expected = expected_scores(archive, base, tmp_path / name, held_out[1])
        assert scores[1] == pytest.approx(expected, abs=1e-3), name

    refused = client.post("/generate", json={"prompt": "a", "adapter_id": adapter["id"]})
    assert refused.json()["error"]["code"] == "adapter_cannot_generate"
    # It is the training that prefers, and not the random head: the other way round it learns too.
    turned = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    other = train(client, upload(client, turned)["id"], peft=pefts["lora"], method=method)
    assert preferred([score(client, other["adapter_id"], row) for row in held_out]) <= 0.1
    turns = [*held_out[1]["prompt"], {"role": "assistant", "content": "{{ sample.output_text }}"}]
    grader = {"type": "score_model", "model": adapter["id"], "input": turns}
    body = {"grader": grader, "model_sample": held_out[1]["chosen"]}
    assert client.post("/graders/run", json=body).json()["reward"] == scores[1][0]

    command = [sys.executable, "-m", "cli.main", "score", "say 4", "it is a number"]
    command += ["the number is 4", "--adapter", adapter["id"], "--url", str(client.base_url)]
    command += ["--key", client.headers["authorization"].removeprefix("Bearer ")]
    said = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True).stdout
    assert [line.split(maxsplit=1)[1] for line in said.splitlines()] == [
        "the number is 4",
        "it is a number",
    ]


def test_the_same_path_over_postgresql_redis_and_s3(
    serve: Serve, postgres_url: str, redis_url: str, s3: S3Server
) -> None:
    store = Store(postgres_url)
    store.database.migrate()
    store.close()
    client = serve(
        database_url=postgres_url,
        broker_url=redis_url,
        storage_url=f"s3://{s3.bucket}/luthier",
        s3_endpoint_url=s3.endpoint_url,
        s3_access_key=s3.access_key,
        s3_secret_key=s3.secret_key,
    )
    dataset = upload(client, conversations(60))
    job = train(client, dataset["id"], checkpoint_every=10)
    checkpoints = client.get(f"/jobs/{job['id']}/checkpoints").json()["data"]
    assert [checkpoint["step"] for checkpoint in checkpoints] == [40, 30]
    assert (
        generate(client, adapter_id=job["adapter_id"])["logprobs"] != generate(client)["logprobs"]
    )
    assert streamed(client, adapter_id=job["adapter_id"])
