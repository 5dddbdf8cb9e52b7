"""S9: secrets and clients' texts go through every route, and come out of no log, event, metric or
error: neither where it goes well, nor where everything behind the route is broken.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import generate_latest
from pydantic import SecretStr
from starlette.responses import JSONResponse

from api.app import create_app
from api.middleware import AnswerBroken
from api.services import Services, open_services
from jobs.keys import SCOPES
from jobs.model import Status
from jobs.settings import Settings, as_environment
from jobs.store import Store
from jobs.tables import metadata
from storage.memory import MemoryStore
from storage.objects import StorageError
from tests.api.inference import Inference
from tests.api.making import peft_files, publish_adapter, spec_for, tar_of
from tests.bases import make_base
from tests.record import Record
from tests.security.conftest import Operation
from tests.workers import REPO, House

pytestmark = pytest.mark.anyio

TEXT = "canary-text-7f3a91"  # what clients write: prompts, rows, answers
S3_SECRET = "canary-s3-secret-55e0"
PEPPER = "canary-pepper-9d21"
VLLM_KEY = "canary-vllm-key-1c77"
DATABASE = "canary-database-password-e4"
SECRETS = (S3_SECRET, PEPPER, VLLM_KEY, DATABASE)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """The same, with secrets in them."""
    return settings.model_copy(
        update={
            "s3_secret_key": SecretStr(S3_SECRET),
            "pepper": SecretStr(PEPPER),
            "vllm_api_key": SecretStr(VLLM_KEY),
        }
    )


class Broken(MemoryStore):
    """An object store whose every call fails, saying a secret: as a library's errors may."""

    def __init__(self, error: type[Exception]) -> None:
        super().__init__()
        self._error = error

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("_"):
            return super().__getattribute__(name)
        raise self._error(f"request failed: secret_key={S3_SECRET} body={TEXT}")


@pytest.fixture
def caller(services: Services, app: Any) -> httpx.AsyncClient:
    tenants = services.store.tenants
    key, _ = tenants.issue_key(tenants.create("ours").id, "canary", SCOPES)
    transport = httpx.ASGITransport(app)
    return httpx.AsyncClient(
        transport=transport,
        base_url="http://luthier.test",
        headers={"authorization": f"Bearer {key}", "x-note": TEXT},
    )


def requests_of(operation: Operation, ids: dict[str, str]) -> Iterator[dict[str, Any]]:
    """What a route is sent: good and bad, with a client's text wherever one fits."""
    said = [{"role": "user", "content": TEXT}]
    job = spec_for({"id": ids["datasets"]}, name=TEXT, metadata={"note": TEXT})
    judge = {"type": "score_model", "model": "tiny", "input": said}
    check = {"type": "string_check", "input": TEXT, "reference": TEXT, "operation": "eq"}
    file = {"bytes": 9, "filename": TEXT, "mime_type": TEXT, "purpose": "fine-tune"}
    bodies: dict[str, list[dict[str, Any]]] = {
        "POST /jobs": [job, job | {"seed": TEXT}, job | {"init": "ad_" + "0" * 24}],
        "POST /jobs/estimate": [job, job | {"method": {"type": "sft", "max_length": TEXT}}],
        "POST /pipelines": [{"stages": {"a": job}}, {"stages": {"a": job, "b": {"seed": TEXT}}}],
        "POST /adapters/merge": [{"adapters": [{"id": ids["adapters"]}], "name": TEXT}],
        "POST /generate": [
            {"prompt": TEXT},
            {"messages": said, "stream": True},
            {"messages": [{"role": "wrong", "content": TEXT}]},
            {"prompt": TEXT, "temperature": TEXT},
            {"prompt": TEXT, "stop": [TEXT], "adapter_id": ids["adapters"]},
        ],
        "POST /score": [{"adapter_id": ids["adapters"], "prompt": TEXT, "completions": [TEXT]}],
        "POST /graders/run": [
            {"grader": check, "model_sample": TEXT, "item": {"x": TEXT}},
            {"grader": judge, "model_sample": TEXT},
        ],
        "POST /graders/validate": [{"grader": check}, {"grader": judge | {"range": TEXT}}],
        "POST /v1/uploads": [file, file | {"purpose": TEXT}, file | {"bytes": TEXT}],
        "POST /v1/uploads/{id}/complete": [{"part_ids": [TEXT], "md5": TEXT}],
    }
    supervised = {"type": "supervised", "supervised": {"max_length": 64}}
    tuning = {"model": "tiny", "training_file": ids["datasets"], "method": supervised}
    hook = {"name": TEXT, "url": "https://1.2.3.4/", "event_types": ["fine_tuning.job.failed"]}
    bodies |= {
        "POST /v1/fine_tuning/jobs": [
            tuning | {"suffix": TEXT, "metadata": {"note": TEXT}},
            tuning | {"seed": TEXT},
            tuning | {"method": {"type": "supervised", "supervised": {"max_length": TEXT}}},
            tuning | {"hyperparameters": {"n_epochs": TEXT}},
        ],
        "POST /v1/fine_tuning/alpha/graders/run": bodies["POST /graders/run"],
        "POST /v1/fine_tuning/alpha/graders/validate": bodies["POST /graders/validate"],
        "POST /v1/webhook_endpoints": [hook, hook | {"url": TEXT}, hook | {"event_types": [TEXT]}],
        "POST /v1/webhook_endpoints/{id}": [{"name": TEXT}, {"url": f"ftp://{TEXT}"}],
    }
    for body in bodies.get(str(operation), ()):
        yield {"json": body}
    if str(operation) in bodies:
        raw = {"content-type": "application/json"}
        yield {"content": f'{{"prompt": "{TEXT}'.encode(), "headers": raw}
        yield {"content": f'["{TEXT}"]'.encode(), "headers": raw}
    if str(operation) == "POST /datasets":
        for rows in (
            {"prompt": TEXT, "completion": TEXT},
            {"prompt": TEXT, "completion": 7},
            {"messages": [{"role": TEXT, "content": TEXT}]},
            {"prompt": TEXT, "completion": TEXT, "label": TEXT},
            {"prompt": [TEXT], "completion": {"x": TEXT}},
        ):
            yield {"params": {"format": "jsonl"}, "content": json.dumps(rows).encode() + b"\n"}
        # Names of fields and columns are told where they are wrong; what is in them is not.
        for format, text in (
            ("jsonl", f'{{"prompt": "{TEXT}'),
            ("csv", f'prompt,completion\n"{TEXT}'),
            ("csv", f"prompt,completion\n{TEXT},{TEXT},{TEXT}"),
            ("csv", f"prompt,completion,label\n{TEXT},{TEXT},{TEXT}"),
            ("parquet", TEXT),
        ):
            yield {"params": {"format": format}, "content": text.encode()}
        yield {"files": {"file": ("rows.jsonl", json.dumps({"prompt": TEXT}).encode())}}
    if str(operation) == "POST /v1/files":
        for row in ({"messages": said}, {"messages": said, "reference": TEXT}, {"input": TEXT}):
            sent = {"file": ("rows.jsonl", json.dumps(row).encode())}
            yield {"files": sent, "data": {"purpose": "fine-tune"}}
            yield {"files": sent, "data": {"purpose": "fine-tune", "x": TEXT}}
    if str(operation) == "POST /v1/uploads/{id}/parts":
        yield {"files": {"data": ("part", TEXT.encode())}}
        yield {"files": {"data": ("part", b"x" * 8)}}
    if str(operation) == "POST /adapters/import":
        for archive in (tar_of(peft_files()), tar_of({"README.md": TEXT.encode()}), TEXT.encode()):
            yield {"params": {"base_model": "tiny"}, "content": archive}
    yield {}


async def go_through(
    caller: httpx.AsyncClient, operations: list[Operation], ids: dict[str, str]
) -> list[httpx.Response]:
    answers = []
    for operation in operations:
        id = ids.get(operation.path.removeprefix("/v1").split("/")[1], "")
        path = operation.path.replace("{id}", id).replace("{checkpoint_id}", "ck_" + "0" * 24)
        if operation.method == "DELETE" and id:
            path = path.replace(id, id[:-1] + ("0" if id[-1] != "0" else "1"))  # another one
        for request in requests_of(operation, ids):
            with suppress(AnswerBroken):  # it had begun: the server cuts the connection
                answers.append(await caller.request(operation.method, path, **request))
    return answers


@pytest.fixture
async def ids(
    caller: httpx.AsyncClient, services: Services, tmp_path: Path, dataset: dict[str, Any]
) -> dict[str, str]:
    job = (await caller.post("/jobs", json=spec_for(dataset))).json()
    pipeline = (await caller.post("/pipelines", json={"stages": {"a": spec_for(dataset)}})).json()
    wanted = {"bytes": 8, "filename": "a.jsonl", "mime_type": "text/plain", "purpose": "fine-tune"}
    upload = (await caller.post("/v1/uploads", json=wanted)).json()
    to = {"name": "a", "url": "https://1.2.3.4/", "event_types": ["fine_tuning.job.failed"]}
    hook = (await caller.post("/v1/webhook_endpoints", json=to)).json()
    return {
        "datasets": dataset["id"],
        "files": dataset["id"],
        "uploads": upload["id"],
        "jobs": job["id"],
        "pipelines": pipeline["id"],
        "fine_tuning": job["id"],
        "webhook_endpoints": hook["id"],
        "adapters": publish_adapter(services, "ours", tmp_path / "adapter"),
    }


def hits(where: str, *canaries: str) -> list[str]:
    return [canary for canary in canaries if canary in where]


@pytest.mark.usefixtures("connected")
async def test_nothing_of_it_comes_out_of_any_route(
    caller: httpx.AsyncClient,
    operations: list[Operation],
    ids: dict[str, str],
    services: Services,
    inference: Inference,
    record: Record,
    capsys: pytest.CaptureFixture[str],
) -> None:
    token = caller.headers["authorization"].removeprefix("Bearer ")
    rounds: list[Callable[[], None]] = [
        lambda: None,
        lambda: setattr(services, "objects", Broken(RuntimeError)),
        lambda: setattr(services, "objects", Broken(StorageError)),
        lambda: setattr(
            inference, "answer", JSONResponse({"error": {"message": "no"}, "x": VLLM_KEY}, 500)
        ),
        lambda: setattr(inference, "answer", JSONResponse({"odd": VLLM_KEY})),
    ]
    answers: list[httpx.Response] = []
    for broken in rounds:
        broken()
        answers += await go_through(caller, operations, ids)
    logged = capsys.readouterr()
    logs = logged.out + logged.err
    assert "http.fault" in logs, "nothing broke: this test shows nothing"
    assert {answer.status_code for answer in answers} >= {200, 201, 404, 422, 500, 502}

    metrics = generate_latest(services.instruments.registry).decode()
    leaks = [
        f"{answer.request.method} {answer.request.url.path}: {answer.text[:300]}"
        for answer in answers
        if answer.status_code >= 400 and hits(answer.text, TEXT, token, *SECRETS)
    ]
    assert leaks == []
    record("S9", "canaries in errors", leaks, exactly=[])
    whole = "".join(answer.text for answer in answers)
    with services.store.database.read() as connection:
        audit = str(connection.execute(metadata.tables["audit"].select()).all())
        events = str(connection.execute(metadata.tables["events"].select()).all())
    for name, text in {
        "logs": logs,
        "metrics": metrics,
        "the audit log": audit,
        "events": events,
    }.items():
        found = hits(text, TEXT, token, token[8:], *SECRETS)
        record("S9", f"canaries in {name}", found, exactly=[])
    record("S9", "secrets in any answer", hits(whole, token, *SECRETS), exactly=[])
    record("S9", "requests that carried them", len(answers), at_least=300)


async def test_a_database_that_is_away_does_not_say_how_it_is_reached(
    services: Services, operations: list[Operation], settings: Settings, record: Record,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    url = f"postgresql+psycopg://luthier:{DATABASE}@127.0.0.1:9/luthier"
    gone = open_services(settings)
    gone.store.close()
    gone.store = Store(url, pepper=PEPPER)
    headers = {"authorization": f"Bearer lk_{TEXT}"}
    transport = httpx.ASGITransport(create_app(gone))
    said = ""
    async with httpx.AsyncClient(
        transport=transport, base_url="http://luthier.test", headers=headers
    ) as caller:
        for operation in operations:
            path = operation.path.replace("{id}", "job_" + "0" * 24)
            answer = await caller.request(operation.method, path)
            said += answer.text
            assert answer.status_code in (503, 200), operation
    await gone.close()
    logged = capsys.readouterr()
    found = hits(said + logged.out + logged.err, DATABASE, TEXT, PEPPER)
    record("S9", "canaries where the database is away", found, exactly=[])


def test_settings_do_not_show_their_secrets(settings: Settings) -> None:
    shown = repr(settings) + str(settings) + settings.model_dump_json()
    assert hits(shown, *SECRETS) == []


def test_a_worker_and_its_child_say_nothing_of_the_rows(
    tmp_path: Path, record: Record, capfd: pytest.CaptureFixture[str]
) -> None:
    """One job that learns, and one whose child breaks over its base's weights."""
    good, broken = make_base(tmp_path / "good"), make_base(tmp_path / "broken")
    house = House(
        tmp_path / "house", good, base_models={"tiny": str(good), "broken": str(broken)},
        s3_secret_key=SecretStr(S3_SECRET), pepper=SecretStr(PEPPER), max_attempts=1,
        lease_s=60.0, heartbeat_s=0.3, sweep_s=0.5, log_format="json",
    )  # fmt: skip
    rows = [{"prompt": f"{TEXT} {n}", "completion": f"{n} {TEXT}"} for n in range(4)]
    dataset_id = house.add_dataset(rows)
    learned = house.submit(dataset_id, max_steps=1)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64])
    revision = house.bases.find("broken").revision
    spec = house.job(learned).spec.model_copy(update={"base_model": "broken"})
    failed = house.store.jobs.submit(house.tenant_id, spec, base_revision=revision).job.id
    worker = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "worker"],
        cwd=REPO,
        env=as_environment(house.settings),
        stdin=subprocess.DEVNULL,
    )
    try:
        ended = [house.wait(job_id).status for job_id in (learned, failed)]
    finally:
        worker.terminate()
        worker.wait(90)
    assert ended == [Status.SUCCEEDED, Status.FAILED]
    said = capfd.readouterr()
    assert "job" in said.out + said.err, "the worker said nothing: this test shows nothing"
    with house.store.database.read() as connection:
        told = "".join(
            str(connection.execute(metadata.tables[name].select()).all())
            for name in ("events", "jobs", "attempts", "audit", "checkpoints", "adapters")
        )
    house.close()
    canaries = (TEXT, *SECRETS)
    record("S9", "canaries in a worker's logs and its child's stderr",
           hits(said.out + said.err, *canaries), exactly=[])  # fmt: skip
    record("S9", "canaries in a job's events and errors", hits(told, *canaries), exactly=[])
