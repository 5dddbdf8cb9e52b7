"""Uploads over real sockets: cut ones leave nothing, large ones leave memory as it was."""

import gc
import json
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from api.app import create_app
from api.services import open_services
from jobs.settings import Settings
from tests.api.serving import serve, wait_until
from tests.record import Record

MIB = 1 << 20
LINE = json.dumps({"prompt": "q" * 1000, "completion": "a" * 1000}).encode() + b"\n"


class Running:
    """A server with a data folder, and what can be seen of it from outside."""

    def __init__(self, port: int, key: str, objects: Path) -> None:
        self.port, self.key, self.objects = port, key, objects
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{port}",
            headers={"authorization": f"Bearer {key}"},
            timeout=60,
        )

    def files(self) -> list[Path]:
        """Objects and unfinished files alike."""
        return [path for path in self.objects.rglob("*") if path.is_file()]

    def connect(self, head: str) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port))
        text = f"{head}\r\nHost: luthier.test\r\nAuthorization: Bearer {self.key}\r\n\r\n"
        connection.sendall(text.encode())
        return connection


@pytest.fixture
def running(settings: Settings, anyio_backend: str) -> Iterator[Running]:
    settings = settings.model_copy(update={"max_upload_bytes": 300 * MIB})
    services = open_services(settings)
    tenant = services.store.tenants.create("ours")
    key, _ = services.store.tenants.issue_key(tenant.id, "test")
    with serve(create_app(services)) as port:
        running = Running(port, key, settings.data_dir / "objects")
        with running.client:
            yield running


def open_files() -> int:
    """Descriptors, but of the database: a thread that had none opens a connection and keeps it."""
    process = psutil.Process()
    return process.num_fds() - sum(".db" in file.path for file in process.open_files())


@pytest.mark.parametrize("form", [False, True], ids=["raw", "form"])
def test_an_upload_that_is_cut_anywhere_leaves_nothing(
    running: Running, form: bool, record: Record
) -> None:
    body = LINE * 1000
    kind = "Content-Type: application/jsonl"
    if form:
        kind = "Content-Type: multipart/form-data; boundary=cut"
        head = b'--cut\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
        body = head + body + b"\r\n--cut--\r\n"
    running.client.get("/datasets")
    before = open_files()
    dice = random.Random(7)

    for _ in range(100):
        cut = dice.randrange(len(body))
        with running.connect(
            f"POST /datasets HTTP/1.1\r\n{kind}\r\nContent-Length: {len(body)}"
        ) as c:
            c.sendall(body[:cut])

    wait_until(lambda: running.files() == [] and open_files() <= before)
    seen = running.client.get("/datasets").json()["data"]
    record("R18", "datasets seen of 100 uploads cut at random", len(seen), exactly=0)
    record("R18", "files left", len(running.files()), exactly=0)
    record("R18", "descriptors left", max(0, open_files() - before), exactly=0)


def test_a_chunked_upload_without_its_last_chunk_leaves_nothing(running: Running) -> None:
    with running.connect(
        "POST /datasets?format=jsonl HTTP/1.1\r\nTransfer-Encoding: chunked"
    ) as connection:
        connection.sendall(b"%x\r\n%s\r\n" % (len(LINE), LINE))
    wait_until(lambda: running.files() == [])
    assert running.client.get("/datasets").json()["data"] == []


def test_256_mib_stream_through_without_staying_in_memory(running: Running, record: Record) -> None:
    piece = LINE * (MIB // len(LINE))
    count = 256 * MIB // len(piece)
    running.client.post("/datasets?format=jsonl", content=piece).raise_for_status()
    gc.collect()
    process, peak = psutil.Process(), 0
    before = process.memory_info().rss

    def pieces() -> Iterator[bytes]:
        nonlocal peak
        for n in range(count):
            if n % 8 == 0:
                peak = max(peak, process.memory_info().rss)
            yield piece

    answer = running.client.post("/datasets?format=jsonl", content=pieces())

    peak = max(peak, process.memory_info().rss)
    assert answer.status_code == 201, answer.text
    assert answer.json()["bytes"] == count * len(piece)
    grown = (peak - before) / MIB
    record("R21", "memory grown in an upload of 256 MiB", grown, "MiB", at_most=64)


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_an_upload_above_the_limit_is_refused_before_it_is_read_whole(
    settings: Settings, framing: str
) -> None:
    settings = settings.model_copy(update={"max_upload_bytes": MIB})
    services = open_services(settings)
    tenant = services.store.tenants.create("ours")
    key, _ = services.store.tenants.issue_key(tenant.id, "test")
    body = LINE * (4 * MIB // len(LINE))
    content = body if framing == "length" else iter([body[:MIB], body[MIB:]])
    with serve(create_app(services)) as port:
        answer = httpx.post(
            f"http://127.0.0.1:{port}/datasets?format=jsonl",
            content=content,
            headers={"authorization": f"Bearer {key}"},
        )
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"
    assert [p for p in (settings.data_dir / "objects").rglob("*") if p.is_file()] == []


def test_a_bad_row_early_in_a_large_upload_is_answered_not_cut_off(running: Running) -> None:
    bad = b"{oops\n" * 2000 + LINE * (8 * MIB // len(LINE))
    answer = running.client.post("/datasets?format=jsonl", content=bad)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "dataset_invalid")
    assert running.files() == []


def test_an_upload_without_a_key_is_refused_before_its_body(running: Running) -> None:
    answer = httpx.post(
        f"http://127.0.0.1:{running.port}/datasets?format=jsonl", content=LINE * 1000
    )
    assert answer.status_code == 401


def test_a_body_that_stops_coming_is_given_up(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = open_services(settings)
    tenant = services.store.tenants.create("ours")
    key, _ = services.store.tenants.issue_key(tenant.id, "test")
    monkeypatch.setattr("api.app.PATIENCE_S", 0.3)
    with serve(create_app(services)) as port:
        running = Running(port, key, settings.data_dir / "objects")
        for route in ("/datasets?format=jsonl", "/jobs"):
            with running.connect(f"POST {route} HTTP/1.1\r\nContent-Length: 1000") as connection:
                connection.sendall(b"{")
                answer = b"".join(iter(lambda: connection.recv(4096), b""))
            assert answer.startswith(b"HTTP/1.1 408")
            assert b"body_too_slow" in answer
        running.client.close()
        assert running.files() == []
