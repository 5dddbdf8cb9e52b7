"""Every archive of the corpus is refused with its own code, and leaves nothing behind."""

import json
from pathlib import Path

import pytest

from adapters.archive import unpack
from adapters.errors import AdapterInvalid
from adapters.geometry import geometry_of
from adapters.kinds import Base, validate_adapter
from tests.adapters import corpus

EXPECTED = json.loads((corpus.FOLDER / "expected.json").read_bytes())
BASE = Base(
    {name: tuple(shape) for name, shape in EXPECTED["base"].items()},
    lambda: geometry_of(EXPECTED["config"]),
)
# What unpack() refuses, and then leaves nothing of; the other codes are validate_adapter()'s.
UNPACKING = {
    "archive_compressed", "archive_malformed", "archive_too_large", "too_many_files",
    "path_traversal", "odd_file_name", "link_in_archive", "special_file_in_archive",
    "nested_folder",
}  # fmt: skip


def verdict(archive: Path, dest: Path) -> str:
    try:
        unpack(archive, dest, max_bytes=EXPECTED["max_bytes"])
        validate_adapter(dest, BASE, max_rank=EXPECTED["max_rank"])
    except AdapterInvalid as refused:
        return refused.code if is_tellable(str(refused)) else f"cannot be told: {refused}"
    return corpus.ACCEPTED


def is_tellable(message: str) -> bool:
    """Whether a message can go into an answer and a log as it is, whatever the stranger's names."""
    return message.isprintable() and len(message) < 400


@pytest.mark.parametrize("name", EXPECTED["codes"])
def test_an_archive_gets_its_verdict(name: str, tmp_path: Path) -> None:
    assert verdict(corpus.FOLDER / name, tmp_path / "out") == EXPECTED["codes"][name]
    left = [path.name for path in tmp_path.iterdir()]
    assert left == ([] if EXPECTED["codes"][name] in UNPACKING else ["out"])


def test_the_corpus_is_what_its_builder_makes() -> None:
    built = {name: data for name, _, data in corpus.cases()}
    stored = {path.name: path.read_bytes() for path in corpus.FOLDER.iterdir()}
    assert json.loads(stored.pop("expected.json")) == corpus.expected()
    assert sorted(stored) == sorted(built)
    compressed = ("compressed.tar.xz", "compressed.tar.bz2", "compressed.tar.gz")
    assert [n for n in built if built[n] != stored[n] and n not in compressed] == []


def test_the_corpus_is_small() -> None:
    sizes = [path.stat().st_size for path in corpus.FOLDER.iterdir()]
    assert max(sizes) < 1 << 20
    assert sum(sizes) < 3 << 20
