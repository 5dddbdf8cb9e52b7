"""The cache fetches once, serves what is whole, forgets what is deleted, keeps to its budget."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adapters import registry
from adapters.cache import AdapterCache
from adapters.errors import AdapterCorrupt, AdapterError, AdapterMissing
from adapters.manifest import Manifest
from storage.keys import adapter_file
from storage.memory import MemoryStore
from storage.objects import StorageUnavailable

TENANT = "tn_" + "a" * 24
ADAPTER = "ad_" + "b" * 24


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class CountingStore(MemoryStore):
    """Counts downloads, and can be taken down."""

    def __init__(self) -> None:
        super().__init__()
        self.downloads: list[str] = []
        self.down = False
        self.gate: threading.Event | None = None

    def get(self, key: str) -> bytes:
        if self.down:
            raise StorageUnavailable("down for the test")
        return super().get(key)

    def get_file(self, key: str, path: Path) -> str:
        self.downloads.append(key.rpartition("/")[2])
        if self.gate:
            self.gate.wait(60)
        return super().get_file(key, path)


@pytest.fixture
def store() -> CountingStore:
    return CountingStore()


def adapter_id(number: int) -> str:
    return f"ad_{number:024x}"


def publish(store: CountingStore, draft: Manifest, folder: Path, count: int) -> int:
    """Publish adapters 0..count-1 of the same files; the size of one."""
    for number in range(count):
        draft = draft.model_copy(update={"adapter_id": adapter_id(number)})
        size_bytes = registry.publish(store, TENANT, folder, draft).size_bytes
    return size_bytes


def on_disk(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_fifty_askers_cause_one_fetch(
    store: CountingStore, tmp_path: Path, draft: Manifest, folder: Path
) -> None:
    registry.publish(store, TENANT, folder, draft)
    cache = AdapterCache(store, tmp_path / "cache", 1 << 20)
    with ThreadPoolExecutor(50) as pool:
        paths = set(pool.map(lambda _: cache.path(ADAPTER), range(50)))
    assert paths == {tmp_path / "cache" / ADAPTER}
    assert sorted(store.downloads) == sorted(path.name for path in folder.iterdir())
    assert registry.verify(paths.pop(), ADAPTER).adapter_id == ADAPTER


def test_a_slow_fetch_of_one_adapter_does_not_hold_up_another(
    store: CountingStore, tmp_path: Path, draft: Manifest, folder: Path
) -> None:
    publish(store, draft, folder, 2)
    cache = AdapterCache(store, tmp_path / "cache", 1 << 20)
    cache.path(adapter_id(0))
    store.gate = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(cache.path, adapter_id(1))
        assert cache.path(adapter_id(0)).is_dir()
        assert not slow.done()
        store.gate.set()
        assert slow.result(timeout=60).is_dir()


def test_a_deleted_adapter_is_missing_after_five_seconds(
    store: CountingStore, tmp_path: Path, draft: Manifest, folder: Path
) -> None:
    registry.publish(store, TENANT, folder, draft)
    clock = Clock()
    cache = AdapterCache(store, tmp_path / "cache", 1 << 20, clock=clock)
    cache.path(ADAPTER)
    registry.remove(store, TENANT, ADAPTER)
    clock.now += 3.4
    assert cache.path(ADAPTER).is_dir()
    clock.now += 0.2
    with pytest.raises(AdapterMissing):
        cache.path(ADAPTER)
    assert on_disk(tmp_path / "cache") == []


def test_a_cached_adapter_is_served_while_the_store_is_down(
    store: CountingStore, tmp_path: Path, draft: Manifest, folder: Path
) -> None:
    publish(store, draft, folder, 2)
    clock = Clock()
    cache = AdapterCache(store, tmp_path / "cache", 1 << 20, clock=clock)
    cache.path(adapter_id(0))
    store.down = True
    clock.now += 60
    assert cache.path(adapter_id(0)).is_dir()
    with pytest.raises(StorageUnavailable):
        cache.path(adapter_id(1))


def test_the_longest_unused_goes_when_the_budget_is_full(
    store: CountingStore, tmp_path: Path, draft: Manifest, folder: Path
) -> None:
    size_bytes = publish(store, draft, folder, 3)
    clock = Clock()
    cache = AdapterCache(store, tmp_path / "cache", 2 * size_bytes, clock=clock)
    for number in (0, 1, 0):
        cache.path(adapter_id(number))
        clock.now += 1
    clock.now += 60
    cache.path(adapter_id(0))
    cache.path(adapter_id(2))
    assert on_disk(tmp_path / "cache") == [adapter_id(0), adapter_id(2)]
    clock.now += 60
    assert cache.path(adapter_id(1)).is_dir()
    assert on_disk(tmp_path / "cache") == [adapter_id(1), adapter_id(2)]


def test_a_folder_just_handed_out_is_not_evicted(
    store: CountingStore, tmp_path: Path, draft: Manifest, folder: Path
) -> None:
    size_bytes = publish(store, draft, folder, 2)
    clock = Clock()
    cache = AdapterCache(store, tmp_path / "cache", size_bytes, clock=clock)
    first = cache.path(adapter_id(0))
    clock.now += 29
    cache.path(adapter_id(1))
    assert registry.verify(first, adapter_id(0))


def test_an_adapter_larger_than_the_budget_is_refused_before_it_is_fetched(
    store: CountingStore, tmp_path: Path, draft: Manifest, folder: Path
) -> None:
    registry.publish(store, TENANT, folder, draft)
    cache = AdapterCache(store, tmp_path / "cache", 100)
    with pytest.raises(AdapterError, match="limited to 100"):
        cache.path(ADAPTER)
    assert store.downloads == []


def test_a_damaged_adapter_is_refused_each_time_and_not_kept(
    store: CountingStore, tmp_path: Path, draft: Manifest, folder: Path
) -> None:
    registry.publish(store, TENANT, folder, draft)
    store.put(adapter_file(TENANT, ADAPTER, "adapter_config.json"), b"{}")
    cache = AdapterCache(store, tmp_path / "cache", 1 << 20)
    for _ in range(2):
        with pytest.raises(AdapterCorrupt, match=r"adapter_config\.json is damaged"):
            cache.path(ADAPTER)
        assert on_disk(tmp_path / "cache") == []


def test_a_new_process_takes_over_whole_folders_only(
    store: CountingStore, tmp_path: Path, draft: Manifest, folder: Path
) -> None:
    publish(store, draft, folder, 2)
    root = tmp_path / "cache"
    first = AdapterCache(store, root, 1 << 20)
    first.path(adapter_id(0))
    damaged = first.path(adapter_id(1)) / "adapter_model.safetensors"
    damaged.write_bytes(b"rotten")
    (root / ".tmp-left").mkdir()
    store.downloads.clear()
    second = AdapterCache(store, root, 1 << 20)
    assert on_disk(root) == [adapter_id(0), adapter_id(1)]
    second.path(adapter_id(0))
    assert store.downloads == []
    second.path(adapter_id(1))
    assert registry.verify(root / adapter_id(1), adapter_id(1))


def test_what_an_earlier_process_left_counts_towards_the_budget(
    store: CountingStore, tmp_path: Path, draft: Manifest, folder: Path
) -> None:
    size_bytes = publish(store, draft, folder, 3)
    root = tmp_path / "cache"
    AdapterCache(store, root, 1 << 20).path(adapter_id(0))
    AdapterCache(store, root, size_bytes + 5000).path(adapter_id(1))
    assert on_disk(root) == [adapter_id(1)]


@pytest.mark.parametrize("odd", ["../precious", "..", "", "/etc", "ad_" + "B" * 24, "a" * 5000])
def test_an_odd_id_is_missing_and_touches_nothing(
    store: CountingStore, tmp_path: Path, odd: str
) -> None:
    (tmp_path / "precious").mkdir()
    cache = AdapterCache(store, tmp_path / "cache", 1 << 20)
    with pytest.raises(AdapterMissing):
        cache.path(odd)
    assert (tmp_path / "precious").is_dir()
    assert on_disk(tmp_path / "cache") == []


def test_many_threads_over_a_small_budget_always_get_a_whole_folder(
    store: CountingStore, tmp_path: Path, draft: Manifest, folder: Path
) -> None:
    size_bytes = publish(store, draft, folder, 6)
    cache = AdapterCache(store, tmp_path / "cache", 2 * size_bytes)

    def ask(number: int) -> None:
        asked = adapter_id(number % 6)
        assert registry.verify(cache.path(asked), asked).adapter_id == asked

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(120)))
