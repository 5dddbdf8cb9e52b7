"""S5, S7: base models come from the operator's list alone, pinned; none of them brings code."""

import ast
import json
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from api.services import Services
from engine.bases import BaseCatalogue, BaseUnusable
from engine.rows import Message
from engine.template import ChatTemplate, RenderError
from jobs.model import Status
from jobs.settings import Settings
from tests.api.making import peft_files, publish_adapter, spec_for, tar_of
from tests.bases import make_base
from tests.record import Record
from tests.workers import House, conversations

pytestmark = pytest.mark.anyio

REPO = Path(__file__).resolve().parents[2]


class Canary:
    """Listens, and counts who comes."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.settimeout(0.05)
        self.port = self._socket.getsockname()[1]
        self.visits = 0
        self._closing = Event()
        self._thread = Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while not self._closing.is_set():
            try:
                visitor, _ = self._socket.accept()
            except TimeoutError:
                continue
            self.visits += 1
            visitor.close()

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
        self._socket.close()


@pytest.fixture
def canary() -> Iterator[Canary]:
    listening = Canary()
    yield listening
    listening.close()


def hostile(port: int) -> list[str]:
    here = f"127.0.0.1:{port}"
    return [
        f"http://{here}/model",
        f"https://{here}/model",
        f"ftp://{here}/x",
        f"file://{here}/etc/passwd",
        "file:///etc/passwd",
        f"//{here}/x",
        f"tiny@{here}",
        f"tiny#http://{here}/",
        f"http:\\\\{here}\\x",
        "http://169.254.169.254/latest/meta-data/",
        "../tiny",
        "../../../../etc/passwd",
        "..%2f..%2fetc",
        "/etc/passwd",
        ".",
        "~root",
        "tiny/../../x",
        "tiny\u2024\u2024/x",
        "\uff0e\uff0e/x",
        "t\u0456ny",
        "tiny\u200b",
        "TINY",
        "tiny ",
        " tiny",
        "tiny\x00",
        "tiny\n",
        "org/name",
        "org/name@" + "0" * 40,
        "git+ssh://git@host/x",
        "s3://bucket/x",
        "\\\\host\\share",
        "$(curl http://x)",
        "{{ 7 * 7 }}",
        "a" * 256,
    ]


async def test_no_name_but_those_on_the_list_leads_anywhere(
    client: httpx.AsyncClient, dataset: dict[str, Any], canary: Canary, record: Record
) -> None:
    names = hostile(canary.port)
    tried = 0
    for name in names:
        spec = spec_for(dataset, base_model=name)
        calls: list[tuple[str, str, dict[str, Any]]] = [
            ("POST", "/jobs", {"json": spec}),
            ("POST", "/jobs/estimate", {"json": spec}),
            ("POST", "/pipelines", {"json": {"stages": {"a": spec}}}),
            ("POST", "/generate", {"json": {"prompt": "x", "base_model": name}}),
            ("GET", f"/datasets/{dataset['id']}/preview", {"params": {"base_model": name}}),
            ("GET", f"/datasets/{dataset['id']}/statistics", {"params": {"base_model": name}}),
            (
                "POST",
                "/adapters/import",
                {"params": {"base_model": name}, "content": tar_of(peft_files())},
            ),
        ]
        for method, path, request in calls:
            answer = await client.request(method, path, **request)
            code = answer.json()["error"]["code"]
            assert (answer.status_code, code) == (422, "base_model_not_allowed"), (path, name)
            tried += 1
        judge = {
            "type": "score_model",
            "model": name,
            "input": [{"role": "user", "content": "x"}],
        }
        answer = await client.post("/graders/run", json={"grader": judge, "model_sample": "x"})
        assert answer.status_code in (404, 422), (name, answer.text)
        tried += 1
    record("S5", "hostile names of base models, all refused", tried, at_least=250)
    record("S5", "connections to the canary", canary.visits, exactly=0)


async def test_an_adapter_that_names_a_base_elsewhere_brings_nobody_there(
    client: httpx.AsyncClient, canary: Canary
) -> None:
    files = peft_files()
    config = json.loads(files["adapter_config.json"])
    config["base_model_name_or_path"] = f"http://127.0.0.1:{canary.port}/model"
    config["revision"] = f"http://127.0.0.1:{canary.port}"
    files["adapter_config.json"] = json.dumps(config).encode()
    answer = await client.post("/adapters/import?base_model=tiny", content=tar_of(files))
    assert answer.status_code in (201, 422)
    assert canary.visits == 0


async def test_what_a_client_writes_is_never_fetched(
    client: httpx.AsyncClient, dataset: dict[str, Any], canary: Canary
) -> None:
    """Links in metadata, names and rows stay text."""
    link = f"http://127.0.0.1:{canary.port}/x"
    row = json.dumps({"prompt": f"![x]({link})", "completion": link}).encode()
    answer = await client.post("/datasets", params={"name": link, "format": "jsonl"}, content=row)
    assert answer.status_code == 201
    spec = spec_for(dataset, name=link, metadata={"webhook": link})
    assert (await client.post("/jobs", json=spec)).status_code == 201
    assert (await client.get(f"/datasets/{answer.json()['id']}/preview")).status_code == 200
    assert canary.visits == 0


@pytest.mark.parametrize(
    "source",
    [
        "org/name",
        "org/name@main",
        "org/name@v1.0",
        "org/name@" + "0" * 39,
        "org/name@" + "A" * 40,
        "name@" + "0" * 40,
        "../org/name@" + "0" * 40,
        "org/../name@" + "0" * 40,
        "http://host/name@" + "0" * 40,
        "org/na me@" + "0" * 40,
        "https://huggingface.co/org/name",
        "missing-folder",
    ],
)
def test_the_list_itself_holds_folders_and_pinned_commits_only(source: str) -> None:
    with pytest.raises(BaseUnusable, match=r"not pinned|folder is missing"):
        BaseCatalogue({"m": source}).find("m")
    if not source.startswith("."):
        with pytest.raises(ValidationError, match="pinned to"):
            Settings(base_models={"m": source})


def test_a_pinned_commit_and_a_folder_are_taken(tmp_path: Path) -> None:
    pinned = "org-1/Name_2.5@" + "0123456789abcdef" * 2 + "01234567"
    sources = {"hub": pinned, "folder": str(tmp_path), "later": "/models/later", "near": "./m"}
    assert Settings(base_models=sources).base_models == sources


CODE = 'from pathlib import Path\nPath({canary!r}).write_text("ran")\n'


def with_code(base: Path, folder: Path, canary: Path, file: str) -> Path:
    """A base that asks for Python of its own, which would leave a file behind."""
    shutil.copytree(base, folder)
    config = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    maps = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    tokenizers = {"AutoTokenizer": ["own.Slow", "own.Fast"]}
    config["auto_map"] = tokenizers if file == "tokenizer_config.json" else maps
    (folder / file).write_text(json.dumps(config))
    (folder / "own.py").write_text(CODE.format(canary=str(canary)))
    return folder


@contextmanager
def swapped(folder: Path, other: Path) -> Iterator[None]:
    """`folder` with the files of `other` in it."""
    kept = folder.with_name("kept")
    folder.rename(kept)
    shutil.copytree(other, folder)
    yield
    shutil.rmtree(folder)
    kept.rename(folder)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
async def test_a_base_with_code_of_its_own_is_refused_when_a_job_is_posted(
    client: httpx.AsyncClient,
    dataset: dict[str, Any],
    services: Services,
    base_folder: Path,
    tmp_path: Path,
    record: Record,
    file: str,
) -> None:
    canary = tmp_path / "canary"
    folder = with_code(base_folder, tmp_path / "evil", canary, file)
    services.bases = BaseCatalogue({"evil": str(folder)})
    answer = await client.post("/jobs", json=spec_for(dataset, base_model="evil"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "model_needs_code")
    generated = await client.post("/generate", json={"prompt": "x"})
    assert (generated.status_code, generated.json()["error"]["code"]) == (422, "model_needs_code")
    record("S7", f"runs of a base's own code ({file})", int(canary.exists()), exactly=0)


def test_a_base_that_gets_code_after_the_job_was_posted_fails_the_job(
    tmp_path: Path, record: Record
) -> None:
    base = make_base(tmp_path / "base")
    house = House(tmp_path / "house", base, lease_s=3.0, heartbeat_s=0.3, sweep_s=0.5)
    canary = tmp_path / "canary"
    job_id = house.submit(house.add_dataset(conversations(4)), max_steps=1)
    evil = with_code(base, tmp_path / "evil", canary, "config.json")
    with swapped(base, evil), house.worker():
        job = house.wait(job_id)
    house.close()
    assert job.status is Status.FAILED
    assert job.error is not None
    record("S7", "code of the job", job.error.code, exactly="model_needs_code")
    record("S7", "runs of a base's own code by a worker", int(canary.exists()), exactly=0)


def test_nothing_of_ours_trusts_remote_code_or_unpickles(record: Record) -> None:
    looked = 0
    for room in ("api", "jobs", "engine", "adapters", "storage", "cli", "examples", "benchmarks"):
        for path in (REPO / room).rglob("*.py"):
            looked += 1
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                    assert isinstance(node.value, ast.Constant), path
                    assert node.value.value is False, path
                if isinstance(node, ast.Import | ast.ImportFrom):
                    names = {alias.name for alias in node.names} | {getattr(node, "module", "")}
                    assert not names & {"pickle", "dill", "cloudpickle", "joblib", "shelve"}, path
                if isinstance(node, ast.Attribute) and node.attr == "load":
                    owner = node.value.id if isinstance(node.value, ast.Name) else ""
                    assert owner != "torch", path
    record("S7", "files without trust_remote_code, pickle and torch.load", looked, at_least=200)


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.popen('touch CANARY').read() }}",
    "{{ lipsum.__globals__['os'].system('touch CANARY') }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ ''|attr('__class__')|attr('__mro__') }}",
    "{{ '%s'|format(messages.__class__) }}",
    "{{ '{0.__class__}'.format(messages) }}",
    "{% set x = messages.append({'role': 'user', 'content': 'x'}) %}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
    "{% extends '/etc/passwd' %}",
    "{{ range(1000000000)|list }}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_a_chat_template_does_not_get_out(source: str, tmp_path: Path, record: Record) -> None:
    canary = tmp_path / "canary"
    text = source.replace("CANARY", str(canary))
    try:
        said = ChatTemplate(text, {}).render(
            [Message(role="user", content="hi")], add_generation_prompt=False, now=datetime.now()
        )
    except RenderError:
        said = ""
    assert "class" not in said
    assert "root:" not in said
    assert len(said) < 10_000
    record("S7", "escapes of a chat template", int(canary.exists()), exactly=0)


async def test_an_imported_adapter_brings_no_template(
    client: httpx.AsyncClient, services: Services, tmp_path: Path
) -> None:
    """Templates are the base's, fixed in the contract when training starts."""
    files = peft_files() | {"chat_template.jinja": ESCAPES[4].encode()}
    answer = await client.post("/adapters/import?base_model=tiny", content=tar_of(files))
    assert answer.status_code in (201, 422)
    trained = publish_adapter(services, "ours", tmp_path / "adapter")
    assert (await client.get(f"/adapters/{trained}")).status_code == 200
