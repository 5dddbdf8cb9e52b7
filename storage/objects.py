"""The object store's Protocol: whole objects under slash-separated keys, visible all at once.

StorageError
├── ObjectNotFound       no object has that key
├── ObjectExists         a put with if_absent lost to an earlier one
└── StorageUnavailable   the store did not answer in time; the same call may succeed later
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, Self


class StorageError(Exception):
    """Something the object store refused or could not do."""


class ObjectNotFound(StorageError):
    """No object has the key."""

    def __init__(self, key: str) -> None:
        super().__init__(f"no object {key!r} in the store; it was never written or was deleted")
        self.key = key


class ObjectExists(StorageError):
    """A conditional put found an object there."""

    def __init__(self, key: str) -> None:
        super().__init__(f"object {key!r} exists already and was left as it is")
        self.key = key


class StorageUnavailable(StorageError):
    """The store is down, slow or overloaded: try again later."""


class ObjectInfo(NamedTuple):
    """What a store knows of an object without reading it."""

    key: str
    size_bytes: int
    modified_at: float  # seconds since the epoch


class ObjectWriter(Protocol):
    """An object being written: nothing of it is visible before `commit`.

    Leaving the `with` block without a commit aborts. `abort` may be called twice, and does nothing
    after a commit.
    """

    def write(self, data: bytes) -> None: ...
    def commit(self) -> None: ...
    def abort(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...


class ObjectStore(Protocol):
    """Objects by key. Any call may raise StorageError, or ValueError for a malformed key."""

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        """Write a whole object. With if_absent, ObjectExists when there is one."""
        ...

    def put_file(self, key: str, path: Path) -> None:
        """Write an object from a local file of any size."""
        ...

    def writer(self, key: str) -> ObjectWriter:
        """Write an object of unknown size in pieces, in bounded memory."""
        ...

    def get(self, key: str) -> bytes:
        """A whole object in memory; ObjectNotFound."""
        ...

    def stream(self, key: str, *, chunk_bytes: int = 1 << 20) -> Iterator[bytes]:
        """An object in chunks. ObjectNotFound is raised by the call, not by the first chunk."""
        ...

    def get_file(self, key: str, path: Path) -> str:
        """Write an object to a local file, durably and all at once; its sha256 in hex."""
        ...

    def head(self, key: str) -> ObjectInfo:
        """Size and age of an object; ObjectNotFound."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object whose key starts with the prefix, sorted by key.

        Servers differ where `a/...` stands next to `a-b` and `a.b`, that is, when one folder's name
        begins another's and goes on with such a character. storage.keys makes no such pair.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove an object, if it is there."""
        ...

    def delete_prefix(self, prefix: str) -> int:
        """Remove everything under a prefix that ends in a slash; how many there were."""
        ...

    def presigned_url(self, key: str, *, expires_s: int, filename: str) -> str | None:
        """A URL that downloads the object without credentials; None: this store has no URLs."""
        ...

    def ping(self) -> None:
        """Return when the store answers; StorageUnavailable within seconds when it does not."""
        ...
