"""The object store in memory: for tests and for trying things out. Safe between threads."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from storage.files import write_whole
from storage.keys import check_key, check_prefix
from storage.objects import ObjectExists, ObjectInfo, ObjectNotFound, ObjectWriter, StorageError


class MemoryStore:
    """Objects in a dict."""

    def __init__(self) -> None:
        self._objects: dict[str, tuple[bytes, float]] = {}
        self._lock = threading.Lock()

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        check_key(key)
        with self._lock:
            if if_absent and key in self._objects:
                raise ObjectExists(key)
            self._objects[key] = (bytes(data), time.time())

    def put_file(self, key: str, path: Path) -> None:
        self.put(key, path.read_bytes())

    def writer(self, key: str) -> ObjectWriter:
        return _MemoryWriter(self, check_key(key))

    def get(self, key: str) -> bytes:
        return self._entry(key)[0]

    def stream(self, key: str, *, chunk_bytes: int = 1 << 20) -> Iterator[bytes]:
        data = self.get(key)
        return (data[at : at + chunk_bytes] for at in range(0, len(data), chunk_bytes))

    def get_file(self, key: str, path: Path) -> str:
        return write_whole(path, self.stream(key))

    def head(self, key: str) -> ObjectInfo:
        data, modified_at = self._entry(key)
        return ObjectInfo(key, len(data), modified_at)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        with self._lock:
            found = [
                ObjectInfo(key, len(data), modified_at)
                for key, (data, modified_at) in self._objects.items()
                if key.startswith(prefix)
            ]
        return iter(sorted(found))

    def delete(self, key: str) -> None:
        check_key(key)
        with self._lock:
            self._objects.pop(key, None)

    def delete_prefix(self, prefix: str) -> int:
        check_prefix(prefix, whole=True)
        with self._lock:
            doomed = [key for key in self._objects if key.startswith(prefix)]
            for key in doomed:
                del self._objects[key]
        return len(doomed)

    def presigned_url(self, key: str, *, expires_s: int, filename: str) -> str | None:
        return None

    def ping(self) -> None:
        return None

    def _entry(self, key: str) -> tuple[bytes, float]:
        check_key(key)
        with self._lock:
            if key not in self._objects:
                raise ObjectNotFound(key)
            return self._objects[key]


class _MemoryWriter:
    def __init__(self, store: MemoryStore, key: str) -> None:
        self._store, self._key = store, key
        self._data = bytearray()
        self._open = True

    def write(self, data: bytes) -> None:
        self._check_open()
        self._data += data

    def commit(self) -> None:
        self._check_open()
        self._store.put(self._key, bytes(self._data))
        self.abort()

    def abort(self) -> None:
        self._open = False
        self._data = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.abort()

    def _check_open(self) -> None:
        if not self._open:
            raise StorageError(f"the writer of {self._key!r} is closed; open another one")
