"""The adapters an inference server keeps on its disk: fetched and verified once, LRU by bytes."""

import math
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

from adapters.errors import AdapterCorrupt, AdapterError, AdapterMissing
from adapters.registry import fetch, read_manifest, tenant_of, verify
from storage.files import make_folder
from storage.keys import adapter_pointer
from storage.objects import ObjectStore, StorageUnavailable

# How long a deleted adapter is still handed out. Servers ask again after a second, so that it is
# gone from all of them within five.
_STALE_S = 3.5
_IN_USE_S = 30.0  # a folder just handed out is being read: not evicted, even over budget


@dataclass
class _Entry:
    """A folder on the disk; those of an earlier process are verified when first asked for."""

    size_bytes: int
    used_at: float
    checked_at: float | None  # when it was known to be whole and not deleted


class AdapterCache:
    """Folders of adapters under a root of its own. Any number of threads may ask."""

    def __init__(
        self,
        store: ObjectStore,
        root: Path,
        budget_bytes: int,
        *,
        in_use_s: float = _IN_USE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`in_use_s`: how long a folder stays, once handed out; infinite: until `drop_idle`."""
        self._store, self._root, self._budget_bytes = store, root, budget_bytes
        self._in_use_s, self._clock = in_use_s, clock
        self._lock = threading.Lock()  # held for moments; guards the two dicts and renames
        self._entries: dict[str, _Entry] = {}
        self._asking: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
        make_folder(root)
        for folder in root.iterdir():
            if _is_id(folder.name):
                self._entries[folder.name] = _Entry(_size_of(folder), float("-inf"), None)
            else:
                shutil.rmtree(folder, ignore_errors=True)

    def path(self, adapter_id: str) -> Path:
        """The folder of a verified adapter (its files and manifest.json).

        AdapterMissing, AdapterCorrupt, StorageError. The folder may be evicted `in_use_s` after the
        last call: load from it at once, and ask again for the next time.
        """
        if not _is_id(adapter_id):
            raise AdapterMissing(adapter_id)
        with self._lock:
            own = self._asking.setdefault(adapter_id, threading.Lock())
        with own:
            if not self._is_fresh(adapter_id):
                self._refresh(adapter_id)
            return self._root / adapter_id

    def sizes(self) -> dict[str, int]:
        """What is on the disk: bytes by adapter id."""
        with self._lock:
            return {adapter_id: entry.size_bytes for adapter_id, entry in self._entries.items()}

    def drop_idle(self, adapter_id: str, idle_s: float) -> bool:
        """Delete a folder, unless it was handed out in the last `idle_s`; whether it is gone."""
        with self._lock:
            entry = self._entries.get(adapter_id)
            if entry is None:
                return True
            if entry.used_at > self._clock() - idle_s:
                return False
            doomed = self._set_aside(adapter_id)
        shutil.rmtree(doomed, ignore_errors=True)
        return True

    def _is_fresh(self, adapter_id: str) -> bool:
        """Whether we have it and need not ask the store yet; marks it as used."""
        with self._lock:
            entry = self._entries.get(adapter_id)
            if entry is None or entry.checked_at is None:
                return False
            now = self._clock()
            if now - entry.checked_at >= _STALE_S:
                return False
            entry.used_at = now
            return True

    def _refresh(self, adapter_id: str) -> None:
        """Ask the store whether the adapter is still there, and fetch it if we have not."""
        try:
            tenant_id = tenant_of(self._store, adapter_id)
        except AdapterMissing:
            if math.isfinite(self._in_use_s):
                self._drop(adapter_id)
            raise
        except StorageUnavailable:
            # Serve on: who cannot be reached cannot have deleted it a moment ago either.
            if not self._confirm(adapter_id):
                raise
            return
        if not self._confirm(adapter_id):
            size_bytes = self._adopt(adapter_id) or self._fetch(tenant_id, adapter_id)
            now = self._clock()
            with self._lock:
                self._entries[adapter_id] = _Entry(size_bytes, now, now)

    def _confirm(self, adapter_id: str) -> bool:
        """Mark a verified folder as checked just now; False when there is none (any more)."""
        with self._lock:
            entry = self._entries.get(adapter_id)
            if entry is None or entry.checked_at is None:
                return False
            entry.used_at = entry.checked_at = self._clock()
            return True

    def _adopt(self, adapter_id: str) -> int | None:
        """The size of what an earlier process fetched, if it is still whole."""
        try:
            return verify(self._root / adapter_id, adapter_id).size_bytes
        except AdapterCorrupt:
            self._drop(adapter_id)
            return None

    def _fetch(self, tenant_id: str, adapter_id: str) -> int:
        size_bytes = read_manifest(self._store, tenant_id, adapter_id).size_bytes
        if size_bytes > self._budget_bytes:
            raise AdapterError(
                f"adapter {adapter_id} has {size_bytes} bytes and the adapter cache is limited to "
                f"{self._budget_bytes}; raise the limit of the inference server"
            )
        self._make_room(size_bytes)
        temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=self._root))
        try:
            fetch(self._store, tenant_id, adapter_id, temporary)
            os.replace(temporary, self._root / adapter_id)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return size_bytes

    def _make_room(self, size_bytes: int) -> None:
        """Evict the longest unused, until this many bytes fit or all the rest is in use."""
        idle_since = self._clock() - self._in_use_s
        doomed = []
        with self._lock:
            total = size_bytes + sum(entry.size_bytes for entry in self._entries.values())
            by_age = sorted(self._entries.items(), key=lambda item: item[1].used_at)
            for adapter_id, entry in by_age:
                if total <= self._budget_bytes or entry.used_at > idle_since:
                    break
                total -= entry.size_bytes
                doomed.append(self._set_aside(adapter_id))
        for folder in doomed:
            shutil.rmtree(folder, ignore_errors=True)

    def _drop(self, adapter_id: str) -> None:
        with self._lock:
            doomed = self._set_aside(adapter_id)
        shutil.rmtree(doomed, ignore_errors=True)

    def _set_aside(self, adapter_id: str) -> Path:
        """Rename a folder that is to be deleted, so that nobody sees half of it. Under the lock."""
        self._entries.pop(adapter_id, None)
        doomed = Path(tempfile.mkdtemp(prefix=".tmp-", dir=self._root))
        if (self._root / adapter_id).is_dir():
            os.replace(self._root / adapter_id, doomed)
        return doomed


def _is_id(name: str) -> bool:
    try:
        return bool(adapter_pointer(name))
    except ValueError:
        return False


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
