"""What is counted of the object store: each call once, by what came of it, without waiting."""

import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from storage.measured import MeasuredStore
from storage.memory import MemoryStore
from storage.objects import ObjectExists, ObjectNotFound, StorageError, StorageUnavailable


class Figures:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.inner = MemoryStore()
        self.store = MeasuredStore(self.inner, self.registry)

    def calls(self, verb: str, result: str) -> float:
        labels = {"verb": verb, "result": result}
        return self.registry.get_sample_value("luthier_storage_calls_total", labels) or 0.0

    def seconds(self, verb: str) -> float:
        name = "luthier_storage_call_seconds_sum"
        return self.registry.get_sample_value(name, {"verb": verb}) or 0.0

    def bytes(self, way: str) -> float:
        return self.registry.get_sample_value(f"luthier_storage_{way}_bytes_total") or 0.0


@pytest.fixture
def figures() -> Figures:
    return Figures()


def test_calls_are_counted_by_verb_and_result(figures: Figures, tmp_path: Path) -> None:
    store = figures.store
    store.put("a/b", b"12345")
    assert store.get("a/b") == b"12345"
    store.get_file("a/b", tmp_path / "b")
    with pytest.raises(ObjectNotFound):
        store.get("a/c")
    with pytest.raises(ObjectNotFound):
        store.stream("a/c")
    with pytest.raises(ObjectExists):
        store.put("a/b", b"", if_absent=True)
    assert [info.key for info in store.list("a/")] == ["a/b"]

    assert figures.calls("put", "ok") == figures.calls("put", "exists") == 1
    assert figures.calls("get", "ok") == figures.calls("get", "not_found") == 1
    assert figures.calls("stream", "not_found") == figures.calls("list", "ok") == 1
    assert (figures.bytes("written"), figures.bytes("read")) == (5, 10)


def test_a_stream_is_one_call_and_its_readers_time_is_not_the_stores(figures: Figures) -> None:
    figures.store.put("a", bytes(30))
    for _ in figures.store.stream("a", chunk_bytes=10):
        time.sleep(0.05)
    assert figures.calls("stream", "ok") == 1
    assert figures.seconds("stream") < 0.1
    assert figures.bytes("read") == 30


def test_a_stream_that_is_left_early_is_abandoned_and_no_failure(figures: Figures) -> None:
    figures.store.put("a", bytes(30))
    chunks = figures.store.stream("a", chunk_bytes=10)
    next(chunks)
    del chunks
    assert figures.calls("stream", "abandoned") == 1


def test_a_writer_is_one_call_from_its_first_byte_to_its_commit(figures: Figures) -> None:
    with figures.store.writer("a") as writer:
        writer.write(b"123")
        writer.write(b"45")
        writer.commit()
    with figures.store.writer("b") as writer:
        writer.write(b"67")
    assert figures.calls("write", "ok") == figures.calls("write", "abandoned") == 1
    assert figures.bytes("written") == 5
    assert figures.inner.get("a") == b"12345"


@pytest.mark.parametrize(
    ("error", "result"),
    [(StorageUnavailable("slow"), "unavailable"), (StorageError("no"), "error")],
)
def test_failures_are_told_apart(
    figures: Figures, monkeypatch: pytest.MonkeyPatch, error: StorageError, result: str
) -> None:
    def fail(key: str) -> bytes:
        raise error

    monkeypatch.setattr(figures.inner, "get", fail)  # the edge: a store that is away
    with pytest.raises(type(error)):
        figures.store.get("a")
    assert figures.calls("get", result) == 1
