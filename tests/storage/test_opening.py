"""A URL in the settings opens the store it names, or says what is wrong with it."""

from pathlib import Path

import pytest

from storage.local import LocalStore
from storage.memory import MemoryStore
from storage.objects import StorageError
from storage.opening import open_store


def test_each_scheme_opens_its_store(tmp_path: Path) -> None:
    assert isinstance(open_store("memory://"), MemoryStore)
    folder = tmp_path / "with space"
    store = open_store(folder.as_uri())
    assert isinstance(store, LocalStore)
    store.put("a", b"x")
    assert (folder / "a").read_bytes() == b"x"


@pytest.mark.parametrize(
    "url",
    ["", "/tmp/x", "file:relative", "file://host/x", "s3://", "ftp://x/y", "http://127.0.0.1/x"],
)
def test_anything_else_is_refused_with_the_forms_that_work(url: str) -> None:
    with pytest.raises(StorageError, match="use file:///absolute/folder"):
        open_store(url)


def test_an_odd_s3_prefix_is_refused() -> None:
    with pytest.raises(ValueError, match="prefix"):
        open_store("s3://bucket/../other", access_key="a", secret_key="b")
