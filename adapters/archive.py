"""Adapters as one file: plain tar archives, written to the byte alike and read with suspicion."""

import os
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from adapters.errors import AdapterError, AdapterInvalid
from storage.keys import check_file_name

_BLOCK = 512
_MAX_ENTRIES = 200
_MAX_EXTENSION_BYTES = 64 << 10  # a pax header or long name, which is held in memory
_PIECE_BYTES = 1 << 20
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)
_LINKS = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.GNUTYPE_LONGLINK)
_COMPRESSED = {
    b"\x1f\x8b\x08": "gzip", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd", b"7z\xbc\xaf": "7z",
}  # fmt: skip


def tar_stream(files: Iterable[tuple[str, int, Iterable[bytes]]]) -> Iterator[bytes]:
    """A tar of (name, size, chunks), made while it is read: equal files give equal bytes."""
    for name, size_bytes, chunks in files:
        entry = tarfile.TarInfo(check_file_name(name))
        entry.size = size_bytes
        entry.mode = 0o644
        yield entry.tobuf(tarfile.PAX_FORMAT)
        left = size_bytes
        for chunk in chunks:
            left -= len(chunk)
            yield chunk
        if left:
            raise AdapterError(f"{name} has {size_bytes - left} bytes instead of {size_bytes}")
        yield bytes(-size_bytes % _BLOCK)
    yield bytes(2 * _BLOCK)


def unpack(path: Path, dest: Path, *, max_bytes: int) -> None:
    """Write the files of a tar into the new folder `dest`; a single top folder is taken off.

    AdapterInvalid: archive_compressed, archive_malformed, archive_too_large, too_many_files,
    path_traversal, odd_file_name, link_in_archive, special_file_in_archive, nested_folder.
    Nothing is left of an archive that is refused.
    """
    dest.mkdir()
    try:
        with path.open("rb") as file:
            _check_is_tar(file)
            _Reader(file, dest, max_bytes).read()
    except BaseException:
        shutil.rmtree(dest)
        raise


@dataclass
class _Reader:
    file: BinaryIO
    dest: Path
    left_bytes: int
    entries: int = 0
    tops: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)

    def read(self) -> None:
        extended: dict[str, str] = {}
        while (entry := self._next_entry()) is not None:
            if entry.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                extended = _pax_records(self._extension(entry))
            elif entry.type == tarfile.XGLTYPE:
                self._extension(entry)
            elif entry.type == tarfile.GNUTYPE_LONGNAME:
                extended = {"path": _text(self._extension(entry).rstrip(b"\0"))}
            else:
                self._take(entry, extended)
                extended = {}
        self._check_end()

    def _next_entry(self) -> tarfile.TarInfo | None:
        block = self.file.read(_BLOCK)
        if not block.strip(b"\0") and len(block) == _BLOCK:
            return None
        self.entries += 1
        if self.entries > _MAX_ENTRIES:
            raise AdapterInvalid("too_many_files", f"the archive has over {_MAX_ENTRIES} entries")
        try:
            entry = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, ValueError) as error:
            raise _malformed("it is cut, damaged, or no tar archive") from error
        if entry.size < 0:
            raise _malformed("an entry has a negative size")
        return entry

    def _extension(self, entry: tarfile.TarInfo) -> bytes:
        if entry.size > _MAX_EXTENSION_BYTES:
            raise _malformed(f"it has an extended header of {entry.size} bytes")
        data = self.file.read(entry.size + -entry.size % _BLOCK)
        return data[: entry.size]

    def _take(self, entry: tarfile.TarInfo, extended: dict[str, str]) -> None:
        path = _checked_path(extended.get("path", entry.name))
        if entry.type in _LINKS:
            raise AdapterInvalid(
                "link_in_archive", f"{path.name!r} is a link; send the file itself"
            )
        if entry.type == tarfile.DIRTYPE:
            return
        if entry.type not in _FILES or any(name.startswith("GNU.sparse") for name in extended):
            text = f"{path.name!r} is neither a file nor a folder"
            raise AdapterInvalid("special_file_in_archive", text)
        size_bytes = _size(extended, entry.size)
        if path.name.startswith("._"):  # macOS puts a file's attributes beside it
            self._copy(path.name, None, size_bytes)
        else:
            self._copy(path.name, self._place(path), size_bytes)

    def _place(self, path: PurePosixPath) -> Path:
        """Where a file goes; files lie in one folder, which may have a name of its own."""
        self.tops.add(str(path.parent))
        if len(path.parts) > 2 or len(self.tops) > 1:
            text = f"{str(path)[:100]!r}: an adapter's files lie in one folder"
            raise AdapterInvalid("nested_folder", text)
        try:
            name = check_file_name(path.name)
        except ValueError as error:
            raise AdapterInvalid("odd_file_name", str(error)) from error
        if name.lower() in self.names:
            raise _malformed(f"{name!r} is there twice")
        self.names.add(name.lower())
        return self.dest / name

    def _copy(self, name: str, target: Path | None, size_bytes: int) -> None:
        self.left_bytes -= size_bytes
        if self.left_bytes < 0:
            text = "the archive's files are larger than this server takes"
            raise AdapterInvalid("archive_too_large", text)
        with (target or Path(os.devnull)).open("wb") as out:
            left = size_bytes
            while left:
                chunk = self.file.read(min(left, _PIECE_BYTES))
                if not chunk:
                    raise _malformed(f"it ends in the middle of {name!r}")
                left -= len(chunk)
                out.write(chunk)
        self.file.read(-size_bytes % _BLOCK)

    def _check_end(self) -> None:
        """After the end mark there is nothing but zeros."""
        while chunk := self.file.read(_PIECE_BYTES):
            if chunk.strip(b"\0"):
                raise _malformed("it has more bytes after its end")
        if not self.names:
            raise _malformed("there are no files in it")


def _check_is_tar(file: BinaryIO) -> None:
    start = file.read(8)
    file.seek(0)
    for magic, kind in _COMPRESSED.items():
        if start.startswith(magic):
            text = f"the archive is {kind}; send a plain tar: tar cf adapter.tar -C FOLDER ."
            raise AdapterInvalid("archive_compressed", text)


def _checked_path(name: str) -> PurePosixPath:
    """An entry's path without a leading `./`; AdapterInvalid when it leaves its folder."""
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\\" in name or (len(name) > 1 and name[1] == ":"):
        raise AdapterInvalid("path_traversal", f"{name[:100]!r} leads out of the archive's folder")
    return PurePosixPath(name)


def _pax_records(data: bytes) -> dict[str, str]:
    """The `length key=value` lines of a pax header."""
    records = {}
    while data:
        digits, _, _ = data.partition(b" ")
        if not digits.isdigit() or not 5 <= int(digits[:9]) <= len(data):
            raise _malformed("it has a broken extended header")
        line, data = data[: int(digits)], data[int(digits) :]
        key, equals, value = line[len(digits) + 1 : -1].partition(b"=")
        if not equals or line[-1:] != b"\n":
            raise _malformed("it has a broken extended header")
        if key in (b"path", b"size") or key.startswith(b"GNU.sparse"):
            records[_text(key)] = _text(value)
    return records


def _size(extended: dict[str, str], size_bytes: int) -> int:
    declared = extended.get("size")
    if declared is None:
        return size_bytes
    if not (declared.isascii() and declared.isdigit() and len(declared) < 20):
        raise _malformed("it has a broken extended header")
    return int(declared)


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except ValueError as error:
        raise AdapterInvalid("odd_file_name", "a name in the archive is not UTF-8") from error


def _malformed(what: str) -> AdapterInvalid:
    return AdapterInvalid("archive_malformed", f"the archive cannot be read: {what}")
