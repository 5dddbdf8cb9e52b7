"""A download is the published files to the byte, or it breaks off before a wrong one is whole."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters import registry
from adapters.archive import unpack
from adapters.download import download
from adapters.errors import AdapterCorrupt, AdapterInvalid, AdapterMissing
from adapters.manifest import Manifest
from storage.keys import adapter_file
from storage.local import LocalStore
from storage.memory import MemoryStore

TENANT = "tn_" + "a" * 24
ADAPTER = "ad_" + "b" * 24


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def drain(chunks: Iterator[bytes], path: Path) -> None:
    with path.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)


def test_a_download_unpacks_to_what_was_published(
    tmp_path: Path, folder: Path, draft: Manifest
) -> None:
    store = LocalStore(tmp_path / "store")
    (folder / "big.json").write_bytes(bytes(range(256)) * 10_000)
    published = registry.publish(store, TENANT, folder, draft)
    drain(download(store, TENANT, ADAPTER), tmp_path / "a.tar")
    drain(download(store, TENANT, ADAPTER), tmp_path / "b.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    unpack(tmp_path / "a.tar", tmp_path / "out", max_bytes=10 << 20)
    assert registry.verify(tmp_path / "out", ADAPTER) == published
    (tmp_path / "out" / "manifest.json").unlink()
    assert contents(tmp_path / "out") == contents(folder)


def test_a_missing_adapter_is_told_before_the_first_byte() -> None:
    with pytest.raises(AdapterMissing):
        download(MemoryStore(), TENANT, ADAPTER)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "delete"])
def test_a_damaged_file_breaks_the_download_off_and_is_named(
    tmp_path: Path, folder: Path, draft: Manifest, name: str, damage: str
) -> None:
    store = MemoryStore()
    registry.publish(store, TENANT, folder, draft)
    key = adapter_file(TENANT, ADAPTER, name)
    whole = store.get(key)
    changed = {"flip": bytes([whole[0] ^ 1]) + whole[1:], "cut": whole[:-1], "grow": whole + b"x"}
    if damage == "delete":
        store.delete(key)
    else:
        store.put(key, changed[damage])
    with pytest.raises(AdapterCorrupt, match=name):
        drain(download(store, TENANT, ADAPTER), tmp_path / "a.tar")
    with pytest.raises(AdapterInvalid):
        unpack(tmp_path / "a.tar", tmp_path / "out", max_bytes=10 << 20)
