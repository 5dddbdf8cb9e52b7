"""Archives: what goes in comes out, equal files give equal bytes, and no file lands outside."""

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.archive import tar_stream, unpack
from adapters.errors import AdapterError, AdapterInvalid
from tests.adapters.crafting import adapter, tar

fuzzing = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None
)
names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,150}(\.[a-z]{1,8})?", fullmatch=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def fresh(tmp_path: Path) -> Path:
    """A folder of its own for each example."""
    number = sum(1 for _ in tmp_path.iterdir())
    (tmp_path / str(number)).mkdir()
    return tmp_path / str(number)


@fuzzing
@given(st.dictionaries(names, st.binary(max_size=2000), min_size=1, max_size=5))
def test_files_survive_the_round_trip(tmp_path: Path, files: dict[str, bytes]) -> None:
    folder = fresh(tmp_path)
    unique = {name.lower(): data for name, data in files.items()}
    (folder / "a.tar").write_bytes(tar(unique))
    unpack(folder / "a.tar", folder / "out", max_bytes=1 << 20)
    assert contents(folder / "out") == unique


def test_any_tar_program_reads_what_we_write() -> None:
    files = {"a.json": b"{}", "b" * 150 + ".safetensors": bytes(1000)}
    with tarfile.open(fileobj=io.BytesIO(tar(files)), mode="r:") as archive:
        read = {member.name: archive.extractfile(member) for member in archive}
        assert {name: file.read() for name, file in read.items() if file} == files
        assert {member.mtime for member in archive} == {0}


def test_the_same_files_make_the_same_bytes_however_they_are_cut() -> None:
    data = bytes(range(256)) * 10
    pieces = [data[at : at + 7] for at in range(0, len(data), 7)]
    assert b"".join(tar_stream([("a", len(data), pieces)])) == tar({"a": data})


def test_a_file_of_another_length_than_announced_stops_the_archive() -> None:
    with pytest.raises(AdapterError, match="a has 3 bytes instead of 5"):
        b"".join(tar_stream([("a", 5, [b"abc"])]))


@pytest.mark.parametrize("name", ["../a", "a/b", "", ".hidden", "ü"])
def test_no_archive_is_made_with_an_odd_name(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a file"):
        b"".join(tar_stream([(name, 1, [b"x"])]))


def test_the_limit_counts_all_files_together(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar({"a": bytes(600), "b": bytes(600)}))
    unpack(tmp_path / "a.tar", tmp_path / "fits", max_bytes=1200)
    with pytest.raises(AdapterInvalid, match="larger than this server takes") as caught:
        unpack(tmp_path / "a.tar", tmp_path / "out", max_bytes=1199)
    assert caught.value.code == "archive_too_large"
    assert not (tmp_path / "out").exists()


@fuzzing
@given(st.data())
def test_damage_is_never_more_than_an_invalid_adapter(tmp_path: Path, data: st.DataObject) -> None:
    folder = fresh(tmp_path)
    damaged = bytearray(tar(adapter()))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, 700) | st.integers(0, len(damaged) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    (folder / "a.tar").write_bytes(damaged)
    try:
        unpack(folder / "a.tar", folder / "out", max_bytes=1 << 20)
    except AdapterInvalid:
        assert not (folder / "out").exists()
    assert {path.name for path in folder.iterdir()} <= {"a.tar", "out"}


@fuzzing
@given(name=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=120))
def test_no_name_leads_outside(tmp_path: Path, name: str) -> None:
    folder = fresh(tmp_path)
    info = tarfile.TarInfo(name)
    info.size = 1
    out = info.tobuf(tarfile.PAX_FORMAT) + b"x".ljust(512, b"\0") + bytes(1024)
    (folder / "a.tar").write_bytes(out)
    try:
        unpack(folder / "a.tar", folder / "out", max_bytes=100)
    except AdapterInvalid:
        assert not (folder / "out").exists()
    else:
        assert list(contents(folder / "out").values()) == [b"x"]
    assert {path.name for path in folder.iterdir()} <= {"a.tar", "out"}


def test_a_file_that_is_no_archive_at_all_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"{}" * 5000)
    with pytest.raises(AdapterInvalid, match="no tar archive"):
        unpack(tmp_path / "a.tar", tmp_path / "out", max_bytes=1 << 20)
