"""The object store in a local folder: one file an object, written aside and renamed into place."""

import errno
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Self

from storage.files import (
    flush,
    fsync_directory,
    make_folder,
    read_chunks,
    temporary_in,
    write_whole,
)
from storage.keys import check_key, check_prefix
from storage.objects import (
    ObjectExists,
    ObjectInfo,
    ObjectNotFound,
    ObjectWriter,
    StorageError,
    StorageUnavailable,
)

_ATTEMPTS = 100  # how often a put makes its folder again when a delete beside it removes it
_ORPHAN_AGE_S = 24 * 3600  # an unfinished file this old belongs to a process that was killed


class LocalStore:
    """Objects as files under a root; `.tmp` holds unfinished ones. Safe between processes.

    A key may not lie below another object (`a` and `a/b`): the one is a file, the other needs a
    folder. storage.keys makes no such pair.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._temporary = self._root / ".tmp"
        with _translated(str(root)):
            make_folder(self._temporary)
            self._remove_orphans()

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        path = self._path(key)
        with _translated(key), temporary_in(self._temporary) as (file, temporary):
            file.write(data)
            flush(file)
            self._place(temporary, path, key, if_absent=if_absent)

    def put_file(self, key: str, path: Path) -> None:
        with self.writer(key) as writer:
            for chunk in read_chunks(path):
                writer.write(chunk)
            writer.commit()

    def writer(self, key: str) -> ObjectWriter:
        return _LocalWriter(self, key, self._path(key))

    def get(self, key: str) -> bytes:
        with _translated(key):
            return self._path(key).read_bytes()

    def stream(self, key: str, *, chunk_bytes: int = 1 << 20) -> Iterator[bytes]:
        self.head(key)
        return _chunks(self._path(key), key, chunk_bytes)

    def get_file(self, key: str, path: Path) -> str:
        return write_whole(path, self.stream(key))

    def head(self, key: str) -> ObjectInfo:
        with _translated(key):
            path = self._path(key)
            if not path.is_file():
                raise ObjectNotFound(key)
            status = path.stat()
        return ObjectInfo(key, status.st_size, status.st_mtime)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        folder = check_prefix(prefix).rpartition("/")[0]
        return self._walk(folder, prefix)

    def delete(self, key: str) -> None:
        path = self._path(key)
        with _translated(key):
            with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                path.unlink()
            self._prune(path.parent)

    def delete_prefix(self, prefix: str) -> int:
        keys = [info.key for info in self.list(check_prefix(prefix, whole=True))]
        for key in keys:
            self.delete(key)
        return len(keys)

    def presigned_url(self, key: str, *, expires_s: int, filename: str) -> str | None:
        return None

    def ping(self) -> None:
        if not os.access(self._temporary, os.W_OK):
            raise StorageUnavailable(f"cannot write to {self._root}; is the disk mounted?")

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _place(self, temporary: Path, path: Path, key: str, *, if_absent: bool = False) -> None:
        """Give a finished file its name; a concurrent delete may remove the empty folder."""
        for _ in range(_ATTEMPTS):
            try:
                make_folder(path.parent)
                _name(temporary, path, key, if_absent=if_absent)
                fsync_directory(path.parent)
            except FileNotFoundError:
                continue
            except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
                text = f"{key!r} lies above or below another object; use another key"
                raise StorageError(text) from error
            return
        raise StorageUnavailable(f"the folder of {key!r} keeps being removed; try again")

    def _remove_orphans(self) -> None:
        for path in self._temporary.iterdir():
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - _ORPHAN_AGE_S:
                    path.unlink()

    def _prune(self, folder: Path) -> None:
        """Remove folders that a delete left empty, up to the root."""
        with suppress(OSError):
            while folder != self._root:
                folder.rmdir()
                folder = folder.parent

    def _walk(self, folder: str, prefix: str) -> Iterator[ObjectInfo]:
        """Objects of a folder in the order of their keys: a folder sorts as name and slash."""
        try:
            entries = list(os.scandir(self._root / folder))
        except (FileNotFoundError, NotADirectoryError):
            return
        names = sorted(entry.name + "/" * entry.is_dir() for entry in entries)
        for name in names:
            key = f"{folder}/{name}" if folder else name
            if name.startswith("."):
                continue
            if name.endswith("/") and (key.startswith(prefix) or prefix.startswith(key)):
                yield from self._walk(key[:-1], prefix)
            elif key.startswith(prefix) and not name.endswith("/"):
                with suppress(ObjectNotFound):  # deleted while we looked
                    yield self.head(key)


class _LocalWriter:
    def __init__(self, store: LocalStore, key: str, path: Path) -> None:
        self._store, self._key, self._path = store, key, path
        self._context: AbstractContextManager[tuple[BinaryIO, Path]] | None
        with _translated(key):
            self._context = temporary_in(store._temporary)
            self._file, self._name = self._context.__enter__()

    def write(self, data: bytes) -> None:
        self._check_open()
        with _translated(self._key):
            self._file.write(data)

    def commit(self) -> None:
        self._check_open()
        with _translated(self._key):
            flush(self._file)
            self._store._place(self._name, self._path, self._key)
        self.abort()

    def abort(self) -> None:
        if self._context is not None:
            context, self._context = self._context, None
            context.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.abort()

    def _check_open(self) -> None:
        if self._context is None:
            raise StorageError(f"the writer of {self._key!r} is closed; open another one")


def _name(temporary: Path, path: Path, key: str, *, if_absent: bool) -> None:
    if not if_absent:
        os.replace(temporary, path)
        return
    try:
        os.link(temporary, path)  # unlike a rename, fails when the name is taken
    except FileExistsError:
        raise ObjectExists(key) from None


def _chunks(path: Path, key: str, chunk_bytes: int) -> Iterator[bytes]:
    with _translated(key):
        yield from read_chunks(path, chunk_bytes)


@contextmanager
def _translated(key: str) -> Iterator[None]:
    """Operating system errors as ours."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise ObjectNotFound(key) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            text = f"no space left on the disk for {key!r}; free some, or move the data folder"
            raise StorageUnavailable(text) from error
        raise StorageError(f"cannot use {key!r}: {error.strerror or error}") from error
