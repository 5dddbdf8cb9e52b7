"""The data folder: one service at a time, and a first key that works."""

from pathlib import Path

import pytest

from cli.failure import CommandFailed
from cli.home import Occupation, key_path, prepare, served_at
from jobs.opening import open_store
from jobs.settings import Settings


def test_a_folder_has_one_service_and_says_where_it_is(tmp_path: Path) -> None:
    first = Occupation(tmp_path)
    first.announce("http://127.0.0.1:1")

    assert served_at(tmp_path) == "http://127.0.0.1:1"
    with pytest.raises(CommandFailed, match="Another `luthier serve`"):
        Occupation(tmp_path)
    assert served_at(tmp_path) == "http://127.0.0.1:1"
    first.release()
    assert served_at(tmp_path) is None
    Occupation(tmp_path).release()


def test_the_note_of_a_service_that_was_killed_misleads_nobody(tmp_path: Path) -> None:
    (tmp_path / "serve.json").write_text('{"pid": 1, "url": "http://127.0.0.1:1"}')

    assert served_at(tmp_path) is None
    Occupation(tmp_path).release()


def test_a_folder_without_a_service_has_no_address(tmp_path: Path) -> None:
    assert served_at(tmp_path / "nowhere") is None


def test_the_first_key_stays_while_it_works(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    prepare(settings)
    first = key_path(tmp_path).read_text()
    prepare(settings)

    assert key_path(tmp_path).read_text() == first
    assert _opens(settings, first)


def test_a_key_that_no_longer_works_is_replaced(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    prepare(settings)
    key_path(tmp_path).write_text("lk_of-another-database\n")
    prepare(settings)

    assert _opens(settings, key_path(tmp_path).read_text())


def _opens(settings: Settings, key: str) -> bool:
    store = open_store(settings)
    try:
        return store.tenants.authenticate(key.strip()) is not None
    finally:
        store.close()
