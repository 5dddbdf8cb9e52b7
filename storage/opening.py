"""From a URL in the settings to an object store."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from storage.keys import check_prefix
from storage.local import LocalStore
from storage.memory import MemoryStore
from storage.objects import ObjectStore, StorageError


def open_store(
    url: str,
    *,
    endpoint_url: str | None = None,
    region: str | None = None,
    access_key: str | None = None,
    secret_key: str | None = None,
    timeout_s: float = 10.0,
) -> ObjectStore:
    """`file:///absolute/folder`, `memory://` or `s3://bucket[/prefix]`; the rest is for S3 only."""
    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.scheme == "memory":
        return MemoryStore()
    if parts.scheme == "file" and not parts.netloc and path.startswith("/"):
        return LocalStore(Path(path))
    if parts.scheme == "s3" and parts.netloc:
        from storage.s3 import connect  # boto3 takes a while to import and not all need it

        return connect(
            parts.netloc,
            _prefix_of(path),
            endpoint_url=endpoint_url,
            region=region,
            access_key=access_key,
            secret_key=secret_key,
            read_timeout_s=timeout_s,
        )
    raise StorageError(
        f"{url!r} is no object store; use file:///absolute/folder, s3://bucket/prefix or memory://"
    )


def _prefix_of(path: str) -> str:
    prefix = path.strip("/")
    return check_prefix(prefix + "/") if prefix else ""
