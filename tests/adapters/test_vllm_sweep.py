"""A deleted adapter leaves vLLM's list within a turn, and its disk when nobody can need it."""

from pathlib import Path

import pytest

from adapters import registry
from adapters.cache import AdapterCache
from adapters.errors import AdapterMissing
from adapters.manifest import Manifest
from adapters.vllm_sweep import Sweep
from storage.memory import MemoryStore
from storage.objects import StorageUnavailable

pytestmark = pytest.mark.anyio

TENANT = "tn_" + "a" * 24
KEEP_S = 60.0


class House:
    """Three adapters that vLLM has asked for, in this order."""

    def __init__(self, store: MemoryStore, root: Path, files: Path, draft: Manifest) -> None:
        self.now = 1000.0
        self.store, self.root = store, root
        self.ids = [f"ad_{number:024x}" for number in range(3)]
        for adapter_id in self.ids:
            made = draft.model_copy(update={"adapter_id": adapter_id})
            self.size_bytes = registry.publish(store, TENANT, files, made).size_bytes
        self.cache = AdapterCache(
            store, root, 1 << 20, in_use_s=float("inf"), clock=lambda: self.now
        )
        self.served = {"static-module": ""} | {
            adapter_id: str(self.cache.path(adapter_id)) for adapter_id in self.ids
        }

    def sweep(self, budget_bytes: int = 1 << 20) -> Sweep:
        return Sweep(
            self.store, self.cache, budget_bytes, lambda: self.served, self.unload,
            keep_s=KEEP_S, clock=lambda: self.now,
        )  # fmt: skip

    async def unload(self, name: str) -> None:
        self.served.pop(name, None)

    def on_disk(self) -> list[str]:
        return sorted(path.name for path in self.root.iterdir())


@pytest.fixture
def house(tmp_path: Path, draft: Manifest, folder: Path) -> House:
    return House(MemoryStore(), tmp_path / "cache", folder, draft)


async def test_a_deleted_adapter_is_unloaded_at_once_and_its_folder_goes_later(
    house: House,
) -> None:
    first, *others = house.ids
    sweep = house.sweep()
    await sweep.turn()
    assert list(house.served) == ["static-module", *house.ids]

    registry.remove(house.store, TENANT, first)
    await sweep.turn()
    assert list(house.served) == ["static-module", *others]
    # A batch that runs may read it again, and who asks for it meanwhile takes nothing away.
    house.now += KEEP_S - 1
    with pytest.raises(AdapterMissing):
        house.cache.path(first)
    await sweep.turn()
    assert house.on_disk() == house.ids
    house.now += 2
    await sweep.turn()
    assert house.on_disk() == others


async def test_the_longest_served_give_way_when_the_disk_is_full(house: House) -> None:
    sweep = house.sweep(budget_bytes=2 * house.size_bytes)
    await sweep.turn()
    assert list(house.served) == ["static-module", *house.ids[1:]]
    await sweep.turn()
    assert list(house.served) == ["static-module", *house.ids[1:]]

    house.now += KEEP_S + 1
    await sweep.turn()
    assert house.on_disk() == house.ids[1:]


async def test_one_that_came_back_stays_on_the_disk(house: House) -> None:
    sweep = house.sweep(budget_bytes=2 * house.size_bytes)
    await sweep.turn()
    house.served[house.ids[0]] = str(house.cache.path(house.ids[0]))
    house.now += KEEP_S + 1
    await sweep.turn()  # now the second one is the longest served
    assert list(house.served)[1:] == [house.ids[2], house.ids[0]]
    assert house.on_disk() == house.ids


async def test_what_was_deleted_while_vllm_was_down_is_cleared(house: House) -> None:
    registry.remove(house.store, TENANT, house.ids[0])
    house.cache = AdapterCache(
        house.store, house.root, 1 << 20, in_use_s=float("inf"), clock=lambda: house.now
    )
    house.served = {}
    sweep = house.sweep()
    await sweep.turn()
    house.now += KEEP_S + 1
    await sweep.turn()
    assert house.on_disk() == house.ids[1:]


async def test_storage_that_is_down_takes_nothing_away(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Down(MemoryStore):
        def get(self, key: str) -> bytes:
            raise StorageUnavailable("down for the test")

    house.store = Down()
    with pytest.raises(StorageUnavailable):
        await house.sweep().turn()
    assert list(house.served) == ["static-module", *house.ids]
