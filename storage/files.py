"""Local files that are there whole or not at all: a temporary one, fsync, rename."""

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


def read_chunks(path: Path, chunk_bytes: int = 1 << 20) -> Iterator[bytes]:
    """A file's bytes in chunks."""
    with path.open("rb") as file:
        while chunk := file.read(chunk_bytes):
            yield chunk


def sha256_of(path: Path) -> str:
    """The sha256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, chunks: Iterable[bytes]) -> str:
    """Replace a file by these bytes, durably; their sha256 in hex. On any error nothing is left."""
    digest = hashlib.sha256()
    with temporary_in(path.parent) as (file, temporary):
        for chunk in chunks:
            digest.update(chunk)
            file.write(chunk)
        flush(file)
        os.replace(temporary, path)
    fsync_directory(path.parent)
    return digest.hexdigest()


@contextmanager
def temporary_in(directory: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """An open temporary file in a folder, closed and (unless it was renamed) removed at the end."""
    descriptor, name = tempfile.mkstemp(prefix=".tmp-", dir=directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file, Path(name)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name)


def flush(file: BinaryIO) -> None:
    """Bring a file's bytes to the disk."""
    file.flush()
    os.fsync(file.fileno())


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, each of them durably.

    FileNotFoundError where another process removes one meanwhile.
    """
    if not folder.is_dir():
        make_folder(folder.parent)
        try:
            folder.mkdir()
        except FileExistsError:
            if not stat.S_ISDIR(folder.stat().st_mode):  # one look: a delete may be beside us
                raise
        fsync_directory(folder.parent)


def fsync_directory(directory: Path) -> None:
    """Bring a folder's entries (a rename, a new file) to the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
