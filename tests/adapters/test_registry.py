"""The registry shows all of an adapter or nothing, and never a damaged byte."""

import json
from pathlib import Path

import pytest

from adapters import registry
from adapters.errors import AdapterCorrupt, AdapterError, AdapterMissing
from adapters.manifest import Manifest
from storage.keys import adapter_file, adapter_pointer, adapter_prefix
from storage.memory import MemoryStore
from storage.objects import ObjectNotFound

TENANT = "tn_" + "a" * 24
OTHER_TENANT = "tn_" + "0" * 24
ADAPTER = "ad_" + "b" * 24
FILES = ["README.md", "adapter_config.json", "adapter_model.safetensors"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def keys(store: MemoryStore) -> list[str]:
    return [info.key for info in store.list("")]


def test_what_is_published_is_fetched_unchanged(
    tmp_path: Path, folder: Path, draft: Manifest
) -> None:
    store = MemoryStore()
    published = registry.publish(store, TENANT, folder, draft)
    fetched = registry.fetch(store, TENANT, ADAPTER, tmp_path / "fetched")
    assert published == fetched == registry.read_manifest(store, TENANT, ADAPTER)
    assert [entry.name for entry in fetched.files] == FILES
    assert fetched.model_copy(update={"files": ()}) == draft
    got = contents(tmp_path / "fetched")
    assert json.loads(got.pop("manifest.json"))["adapter_id"] == ADAPTER
    assert got == contents(folder)
    assert registry.tenant_of(store, ADAPTER) == TENANT
    assert registry.verify(tmp_path / "fetched", ADAPTER) == published


def test_all_keys_of_an_adapter_are_its_own(folder: Path, draft: Manifest) -> None:
    store = MemoryStore()
    registry.publish(store, TENANT, folder, draft)
    prefix = adapter_prefix(TENANT, ADAPTER)
    names = [*FILES, "manifest.json"]
    assert keys(store) == sorted([adapter_pointer(ADAPTER), *(prefix + name for name in names)])


def test_publishing_the_same_again_changes_nothing(folder: Path, draft: Manifest) -> None:
    store = MemoryStore()
    first = registry.publish(store, TENANT, folder, draft)
    store.delete(adapter_pointer(ADAPTER))  # as if the first try had been cut here
    assert registry.publish(store, TENANT, folder, draft) == first
    assert registry.tenant_of(store, ADAPTER) == TENANT


def test_an_adapter_id_never_changes_its_content(
    tmp_path: Path, folder: Path, draft: Manifest
) -> None:
    store = MemoryStore()
    first = registry.publish(store, TENANT, folder, draft)
    (folder / "adapter_model.safetensors").write_bytes(b"other")
    with pytest.raises(AdapterError, match="published already"):
        registry.publish(store, TENANT, folder, draft)
    assert registry.fetch(store, TENANT, ADAPTER, tmp_path / "fetched") == first


def test_an_old_manifest_in_the_folder_is_not_published(folder: Path, draft: Manifest) -> None:
    (folder / "manifest.json").write_text("{}")
    published = registry.publish(MemoryStore(), TENANT, folder, draft)
    assert [entry.name for entry in published.files] == FILES


def test_a_folder_with_a_link_or_nothing_is_not_published(
    tmp_path: Path, folder: Path, draft: Manifest
) -> None:
    (folder / "passwd").symlink_to("/etc/passwd")
    store = MemoryStore()
    with pytest.raises(AdapterError, match="'passwd', which is no plain file"):
        registry.publish(store, TENANT, folder, draft)
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdapterError, match="is empty"):
        registry.publish(store, TENANT, tmp_path / "empty", draft)
    assert keys(store) == []


@pytest.mark.parametrize("adapter_id", ["ad_" + "9" * 24, "nonsense", "../" + ADAPTER, ""])
def test_unknown_and_malformed_ids_are_equally_missing(
    tmp_path: Path, folder: Path, draft: Manifest, adapter_id: str
) -> None:
    store = MemoryStore()
    registry.publish(store, TENANT, folder, draft)
    with pytest.raises(AdapterMissing):
        registry.tenant_of(store, adapter_id)
    with pytest.raises(AdapterMissing):
        registry.read_manifest(store, TENANT, adapter_id)
    with pytest.raises(AdapterMissing):
        registry.fetch(store, TENANT, adapter_id, tmp_path / "fetched")


def test_an_adapter_is_missing_for_another_tenant(folder: Path, draft: Manifest) -> None:
    store = MemoryStore()
    registry.publish(store, TENANT, folder, draft)
    with pytest.raises(AdapterMissing):
        registry.read_manifest(store, OTHER_TENANT, ADAPTER)


def test_a_removed_adapter_leaves_nothing_and_can_be_removed_again(
    folder: Path, draft: Manifest
) -> None:
    store = MemoryStore()
    registry.publish(store, TENANT, folder, draft)
    registry.remove(store, TENANT, ADAPTER)
    registry.remove(store, TENANT, ADAPTER)
    assert keys(store) == []
    with pytest.raises(AdapterMissing):
        registry.tenant_of(store, ADAPTER)


@pytest.mark.parametrize("name", [*FILES[1:], "manifest.json"])
def test_a_flipped_bit_in_a_stored_file_is_found_and_the_file_named(
    tmp_path: Path, folder: Path, draft: Manifest, name: str
) -> None:
    store = MemoryStore()
    registry.publish(store, TENANT, folder, draft)
    key = adapter_file(TENANT, ADAPTER, name)
    damaged = bytearray(store.get(key))
    damaged[len(damaged) // 2] ^= 1
    store.put(key, bytes(damaged))
    with pytest.raises(AdapterCorrupt, match=name) as caught:
        registry.fetch(store, TENANT, ADAPTER, tmp_path / "fetched")
    assert caught.value.name == name


def test_a_flipped_bit_in_the_pointer_is_found(folder: Path, draft: Manifest) -> None:
    store = MemoryStore()
    registry.publish(store, TENANT, folder, draft)
    raw = store.get(adapter_pointer(ADAPTER))
    store.put(adapter_pointer(ADAPTER), raw.replace(TENANT.encode(), OTHER_TENANT.encode()))
    with pytest.raises(AdapterCorrupt, match="pointer is damaged"):
        registry.tenant_of(store, ADAPTER)


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_damage_on_the_local_disk_is_found_and_the_file_named(
    tmp_path: Path, folder: Path, draft: Manifest, name: str
) -> None:
    store = MemoryStore()
    registry.publish(store, TENANT, folder, draft)
    registry.fetch(store, TENANT, ADAPTER, tmp_path / "fetched")
    path = tmp_path / "fetched" / name
    whole = path.read_bytes()
    path.write_bytes(whole + b"x")
    with pytest.raises(AdapterCorrupt) as caught:
        registry.verify(tmp_path / "fetched", ADAPTER)
    assert caught.value.name == name
    path.unlink()
    with pytest.raises(AdapterCorrupt, match="is missing") as caught:
        registry.verify(tmp_path / "fetched", ADAPTER)
    assert caught.value.name == name


def test_a_file_missing_in_the_store_is_named(
    tmp_path: Path, folder: Path, draft: Manifest
) -> None:
    store = MemoryStore()
    registry.publish(store, TENANT, folder, draft)
    store.delete(adapter_file(TENANT, ADAPTER, "adapter_config.json"))
    with pytest.raises(AdapterCorrupt, match=r"adapter_config\.json is missing"):
        registry.fetch(store, TENANT, ADAPTER, tmp_path / "fetched")


def test_a_manifest_under_another_adapters_key_is_refused(folder: Path, draft: Manifest) -> None:
    store = MemoryStore()
    registry.publish(store, TENANT, folder, draft)
    other = "ad_" + "7" * 24
    raw = store.get(adapter_file(TENANT, ADAPTER, "manifest.json"))
    store.put(adapter_file(TENANT, other, "manifest.json"), raw)
    with pytest.raises(AdapterCorrupt, match=f"is the one of {ADAPTER}"):
        registry.read_manifest(store, TENANT, other)
    with pytest.raises(ObjectNotFound):
        store.get(adapter_pointer(other))
