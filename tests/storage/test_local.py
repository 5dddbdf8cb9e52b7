"""What the local store promises beyond the contract: durability's traces on the disk."""

import os
import time
from pathlib import Path

import pytest

from storage.local import LocalStore
from storage.objects import StorageError


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_deletes_leave_no_empty_folders(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("a/b/c/d", b"x")
    store.put("a/e", b"x")
    store.delete("a/b/c/d")
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".tmp", "a", "e"]


def test_an_abandoned_writer_leaves_no_temporary_file(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    with store.writer("a") as writer:
        writer.write(b"x")
        assert len(files(tmp_path / ".tmp")) == 1
    assert files(tmp_path) == []


def test_opening_a_store_removes_what_a_killed_process_left_a_day_ago(tmp_path: Path) -> None:
    LocalStore(tmp_path)
    old, new = tmp_path / ".tmp" / "old", tmp_path / ".tmp" / "new"
    old.write_bytes(b"x")
    new.write_bytes(b"x")
    os.utime(old, (time.time() - 90_000, time.time() - 90_000))
    store = LocalStore(tmp_path)
    assert files(tmp_path) == [".tmp/new"]
    assert list(store.list("")) == []


@pytest.mark.parametrize("key", ["a/b/c", "a"])
def test_a_key_above_or_below_another_object_is_refused(tmp_path: Path, key: str) -> None:
    store = LocalStore(tmp_path)
    store.put("a/b", b"x")
    with pytest.raises(StorageError, match="above or below"):
        store.put(key, b"y")
    assert files(tmp_path) == ["a/b"]


def test_two_stores_on_one_folder_see_each_other(tmp_path: Path) -> None:
    LocalStore(tmp_path).put("a", b"x")
    assert LocalStore(tmp_path).get("a") == b"x"


def test_a_failed_download_leaves_the_old_file(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    (tmp_path / "out").write_bytes(b"old")
    with pytest.raises(StorageError):
        store.get_file("gone", tmp_path / "out")
    assert files(tmp_path) == ["out"]
    assert (tmp_path / "out").read_bytes() == b"old"
