"""An object store whose calls are counted and timed for Prometheus, whichever store it is."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram

from storage.objects import (
    ObjectExists,
    ObjectInfo,
    ObjectNotFound,
    ObjectStore,
    ObjectWriter,
    StorageUnavailable,
)

T = TypeVar("T")

SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
RESULTS: tuple[tuple[type[BaseException], str], ...] = (
    (ObjectNotFound, "not_found"),
    (ObjectExists, "exists"),
    (StorageUnavailable, "unavailable"),
    (GeneratorExit, "abandoned"),
    (BaseException, "error"),
)


class Measures:
    """`result` is ok, not_found or exists, which are answers; unavailable or error, which are
    failures; or abandoned, by a caller that wanted no more.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._calls = Counter(
            "luthier_storage_calls",
            "Calls of the object store by verb and result, its own tries again not counted.",
            ["verb", "result"],
            registry=registry,
        )
        self._seconds = Histogram(
            "luthier_storage_call_seconds",
            "What a call took, without its caller's own time between chunks.",
            ["verb"],
            buckets=SECONDS,
            registry=registry,
        )
        self.read_bytes = Counter(
            "luthier_storage_read_bytes", "Bytes read from the object store.", registry=registry
        )
        self.written_bytes = Counter(
            "luthier_storage_written_bytes", "Bytes written to the object store.", registry=registry
        )

    def note(self, verb: str, result: str, seconds: float) -> None:
        self._calls.labels(verb, result).inc()
        self._seconds.labels(verb).observe(seconds)

    @contextmanager
    def call(self, verb: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        except BaseException as error:
            self.note(verb, result_of(error), time.perf_counter() - began)
            raise
        self.note(verb, "ok", time.perf_counter() - began)

    def drawn(self, verb: str, items: Iterator[T], seconds: float) -> Iterator[T]:
        """The items of a call that took `seconds` to begin; it is one call when they end."""
        result = "ok"
        try:
            while True:
                began = time.perf_counter()
                try:
                    item = next(items)
                except StopIteration:
                    return
                finally:
                    seconds += time.perf_counter() - began
                yield item
        except BaseException as error:
            result = result_of(error)
            raise
        finally:
            self.note(verb, result, seconds)


def result_of(error: BaseException) -> str:
    return next(name for kind, name in RESULTS if isinstance(error, kind))


class MeasuredStore:
    """Does what `store` does."""

    def __init__(self, store: ObjectStore, registry: CollectorRegistry) -> None:
        self._store, self._measures = store, Measures(registry)

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        with self._measures.call("put"):
            self._store.put(key, data, if_absent=if_absent)
        self._measures.written_bytes.inc(len(data))

    def put_file(self, key: str, path: Path) -> None:
        size_bytes = path.stat().st_size
        with self._measures.call("put_file"):
            self._store.put_file(key, path)
        self._measures.written_bytes.inc(size_bytes)

    def writer(self, key: str) -> ObjectWriter:
        return MeasuredWriter(self._store.writer(key), self._measures)

    def get(self, key: str) -> bytes:
        with self._measures.call("get"):
            data = self._store.get(key)
        self._measures.read_bytes.inc(len(data))
        return data

    def stream(self, key: str, *, chunk_bytes: int = 1 << 20) -> Iterator[bytes]:
        began = time.perf_counter()
        try:
            chunks = self._store.stream(key, chunk_bytes=chunk_bytes)
        except Exception as error:
            self._measures.note("stream", result_of(error), time.perf_counter() - began)
            raise
        return self._counted(
            self._measures.drawn("stream", iter(chunks), time.perf_counter() - began)
        )

    def _counted(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self._measures.read_bytes.inc(len(chunk))
            yield chunk

    def get_file(self, key: str, path: Path) -> str:
        with self._measures.call("get_file"):
            sha256 = self._store.get_file(key, path)
        self._measures.read_bytes.inc(path.stat().st_size)
        return sha256

    def head(self, key: str) -> ObjectInfo:
        with self._measures.call("head"):
            return self._store.head(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return self._measures.drawn("list", iter(self._store.list(prefix)), 0.0)

    def delete(self, key: str) -> None:
        with self._measures.call("delete"):
            self._store.delete(key)

    def delete_prefix(self, prefix: str) -> int:
        with self._measures.call("delete_prefix"):
            return self._store.delete_prefix(prefix)

    def presigned_url(self, key: str, *, expires_s: int, filename: str) -> str | None:
        return self._store.presigned_url(key, expires_s=expires_s, filename=filename)

    def ping(self) -> None:
        with self._measures.call("ping"):
            self._store.ping()


class MeasuredWriter:
    """One `write` call from its first byte to its commit; abandoned without one."""

    def __init__(self, writer: ObjectWriter, measures: Measures) -> None:
        self._writer, self._measures = writer, measures
        self._seconds, self._written, self._noted = 0.0, 0, False

    def write(self, data: bytes) -> None:
        with self._part():
            self._writer.write(data)
        self._written += len(data)

    def commit(self) -> None:
        with self._part():
            self._writer.commit()
        self._note("ok")
        self._measures.written_bytes.inc(self._written)

    def abort(self) -> None:
        self._writer.abort()
        self._note("abandoned")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.abort()

    @contextmanager
    def _part(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        except BaseException as error:
            self._note(result_of(error))
            raise
        finally:
            self._seconds += time.perf_counter() - began

    def _note(self, result: str) -> None:
        if not self._noted:
            self._noted = True
            self._measures.note("write", result, self._seconds)
