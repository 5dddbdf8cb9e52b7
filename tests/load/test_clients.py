"""Many clients, slow ones, and large uploads, against `luthier api` in a process of its own."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.load.polling import poll
from tests.load.server import MIB, Api, running_api
from tests.load.slow import SlowClients
from tests.record import Record

CLIENTS = 1000
EVERY_S = 2.0
SLOW = 200
LINE = json.dumps({"prompt": "q" * 1000, "completion": "a" * 1000}).encode() + b"\n"


@pytest.fixture
def api(tmp_path: Path, hollow_base: Path) -> Iterator[Api]:
    with running_api(tmp_path / "house", hollow_base) as api:
        yield api


def test_a_few_pollers_are_all_answered(api: Api) -> None:
    report = poll(api.port, api.pollers(50), seconds=2.0, every_s=0.5)
    assert report.asked >= 50 * 3
    assert report.errors == 0


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_thousand_pollers_are_answered_in_time(api: Api, record: Record) -> None:
    clients = api.pollers(CLIENTS)
    poll(api.port, clients, seconds=4, every_s=EVERY_S)  # all are connected once
    before = api.rss_mib
    report = poll(api.port, clients, seconds=60, every_s=EVERY_S)
    record("R19", "requests of 1,000 clients in 60 s", report.asked, at_least=29_000)
    record("R19", "errors", report.errors, exactly=0)
    record("R19", "memory grown", max(0.0, api.rss_mib - before), "MiB", at_most=50)
    record("R19", "p99", report.p99_ms, "ms", at_most=250)


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_slow_clients_hold_up_nobody_and_are_given_up(api: Api, record: Record) -> None:
    clients = api.pollers(CLIENTS)
    with SlowClients(api.port, clients[0][1], SLOW) as slow:
        report = poll(api.port, clients, seconds=45, every_s=EVERY_S)
        left, held = slow.still_held, list(slow.held_s)
    record("R20", "errors with 200 slow clients", report.errors, exactly=0)
    record("R20", "slow clients still connected after 45 s", left, exactly=0)
    record("R20", "the longest that one was held", max(held), "s", at_most=32)
    record("R20", "p99 with 200 slow clients", report.p99_ms, "ms", at_most=500)


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_gibibyte_streams_through_in_little_memory(api: Api, record: Record) -> None:
    piece = LINE * (MIB // len(LINE))
    headers = {"authorization": f"Bearer {api.key()}"}
    peak = 0.0

    def pieces(count: int) -> Iterator[bytes]:
        nonlocal peak
        for number in range(count):
            if number % 16 == 0:
                peak = max(peak, api.rss_mib)
            yield piece

    with httpx.Client(base_url=api.url, headers=headers, timeout=120) as client:
        client.post("/datasets?format=jsonl", content=pieces(4)).raise_for_status()
        before, began = api.rss_mib, time.monotonic()
        count = 1024 * MIB // len(piece)
        answer = client.post("/datasets?format=jsonl", content=pieces(count))
        took = time.monotonic() - began
    assert answer.status_code == 201, answer.text
    record("R21", "memory grown in an upload of 1 GiB", max(peak, api.rss_mib) - before, "MiB",
           at_most=64)  # fmt: skip
    record("R21", "validated and stored", count * len(piece) / 1e6 / took, "MB/s", at_least=40)
