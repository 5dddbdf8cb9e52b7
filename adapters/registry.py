"""The registry: publish, read, fetch and remove adapters in the object store.

An adapter is there for readers when its manifest is, and servable when its pointer is: files are
written first, then the manifest, then the pointer, and removed the other way round. So a publish or
a removal cut anywhere shows all of an adapter or nothing.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from adapters.errors import AdapterCorrupt, AdapterError, AdapterMissing
from adapters.manifest import MANIFEST_NAME, FileEntry, Manifest, decode, encode, unseal
from storage.crash import crash_point
from storage.files import make_folder, read_chunks, sha256_of, write_whole
from storage.keys import adapter_file, adapter_pointer, adapter_prefix, check_file_name
from storage.objects import ObjectExists, ObjectNotFound, ObjectStore


class _Pointer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    adapter_id: str
    tenant_id: str


def publish(store: ObjectStore, tenant_id: str, folder: Path, manifest: Manifest) -> Manifest:
    """Store a folder's files under the manifest's adapter id; the manifest with its files.

    `manifest.files` is made here. An id has one publisher (each attempt of a job makes its own id)
    and never changes its content: publishing it again is an AdapterError, unless it is the same
    (at another time): then the manifest of the first time is returned.
    """
    paths = _files_of(folder)
    adapter_id = manifest.adapter_id
    existing = _published(store, tenant_id, adapter_id)
    if existing is None:
        files = tuple(_upload(store, tenant_id, adapter_id, path) for path in paths)
        manifest = manifest.model_copy(update={"files": files})
        crash_point("tensors_uploaded")
        manifest = _put_manifest(store, tenant_id, manifest)
        crash_point("manifest_put")
    else:
        files = tuple(map(_entry_of, paths))
        _require_same(existing, manifest.model_copy(update={"files": files}))
        manifest = existing
    pointer = _Pointer(adapter_id=adapter_id, tenant_id=tenant_id)
    store.put(adapter_pointer(adapter_id), encode(pointer))
    return manifest


def read_manifest(store: ObjectStore, tenant_id: str, adapter_id: str) -> Manifest:
    """The manifest; AdapterMissing, AdapterCorrupt."""
    return _parse(adapter_id, sealed_manifest(store, tenant_id, adapter_id))


def sealed_manifest(store: ObjectStore, tenant_id: str, adapter_id: str) -> bytes:
    """The manifest as it is stored; AdapterMissing."""
    return _get(store, adapter_id, lambda: _manifest_key(tenant_id, adapter_id))


def tenant_of(store: ObjectStore, adapter_id: str) -> str:
    """Whose a servable adapter is; AdapterMissing."""
    raw = _get(store, adapter_id, lambda: adapter_pointer(adapter_id))
    try:
        return _Pointer.model_validate_json(unseal(raw)).tenant_id
    except ValueError as error:
        raise AdapterCorrupt(adapter_id, "its pointer", f"is damaged ({error})") from error


def fetch(store: ObjectStore, tenant_id: str, adapter_id: str, dest: Path) -> Manifest:
    """Write an adapter's files and manifest into a folder, each checked against its sha256."""
    raw = sealed_manifest(store, tenant_id, adapter_id)
    manifest = _parse(adapter_id, raw)
    make_folder(dest)
    for entry in manifest.files:
        _fetch_file(store, tenant_id, adapter_id, entry, dest / check_file_name(entry.name))
    write_whole(dest / MANIFEST_NAME, [raw])
    return manifest


def verify(folder: Path, adapter_id: str) -> Manifest:
    """Check a fetched folder against the manifest in it; AdapterCorrupt names the bad file."""
    try:
        manifest = _parse(adapter_id, (folder / MANIFEST_NAME).read_bytes())
        for entry in manifest.files:
            _require_equal(adapter_id, entry, sha256_of(folder / check_file_name(entry.name)))
    except FileNotFoundError as error:
        raise AdapterCorrupt(adapter_id, Path(error.filename).name, "is missing") from error
    return manifest


def remove(store: ObjectStore, tenant_id: str, adapter_id: str) -> None:
    """Delete an adapter, or what a cut publish or removal left of it. Safe to repeat."""
    prefix = adapter_prefix(tenant_id, adapter_id)
    store.delete(adapter_pointer(adapter_id))
    store.delete(_manifest_key(tenant_id, adapter_id))
    store.delete_prefix(prefix)


def _files_of(folder: Path) -> list[Path]:
    """The regular files of a flat folder, by name; an old manifest is not one of them."""
    paths = sorted(path for path in folder.iterdir() if path.name != MANIFEST_NAME)
    odd = [path.name for path in paths if path.is_symlink() or not path.is_file()]
    if odd or not paths:
        what = f"holds {odd[0]!r}, which is no plain file" if odd else "is empty"
        raise AdapterError(f"cannot publish {folder.name!r}: it {what}")
    for path in paths:
        check_file_name(path.name)
    return paths


def _upload(store: ObjectStore, tenant_id: str, adapter_id: str, path: Path) -> FileEntry:
    """Upload a file; the entry describes the bytes that were sent."""
    digest, size_bytes = hashlib.sha256(), 0
    with store.writer(adapter_file(tenant_id, adapter_id, path.name)) as writer:
        for chunk in read_chunks(path):
            digest.update(chunk)
            size_bytes += len(chunk)
            writer.write(chunk)
        writer.commit()
    return FileEntry(name=path.name, size_bytes=size_bytes, sha256=digest.hexdigest())


def _entry_of(path: Path) -> FileEntry:
    return FileEntry(name=path.name, size_bytes=path.stat().st_size, sha256=sha256_of(path))


def _put_manifest(store: ObjectStore, tenant_id: str, manifest: Manifest) -> Manifest:
    key = _manifest_key(tenant_id, manifest.adapter_id)
    try:
        store.put(key, encode(manifest), if_absent=True)
    except ObjectExists:
        existing = read_manifest(store, tenant_id, manifest.adapter_id)
        _require_same(existing, manifest)
        return existing
    return manifest


def _published(store: ObjectStore, tenant_id: str, adapter_id: str) -> Manifest | None:
    try:
        return read_manifest(store, tenant_id, adapter_id)
    except AdapterMissing:
        return None


def _require_same(existing: Manifest, manifest: Manifest) -> None:
    if existing != manifest.model_copy(update={"created_at": existing.created_at}):
        raise AdapterError(
            f"adapter {manifest.adapter_id} is published already with other content; "
            "adapters never change, publish under a new id"
        )


def _fetch_file(
    store: ObjectStore, tenant_id: str, adapter_id: str, entry: FileEntry, path: Path
) -> None:
    try:
        sha256 = store.get_file(adapter_file(tenant_id, adapter_id, entry.name), path)
    except ObjectNotFound as error:
        read_manifest(store, tenant_id, adapter_id)  # AdapterMissing when it is being removed
        raise AdapterCorrupt(adapter_id, entry.name, "is missing") from error
    _require_equal(adapter_id, entry, sha256)


def _require_equal(adapter_id: str, entry: FileEntry, sha256: str) -> None:
    if sha256 != entry.sha256:
        detail = f"is damaged (sha256 {sha256}, published with {entry.sha256})"
        raise AdapterCorrupt(adapter_id, entry.name, detail)


def _parse(adapter_id: str, raw: bytes) -> Manifest:
    try:
        manifest = decode(raw)
    except ValueError as error:
        raise AdapterCorrupt(adapter_id, MANIFEST_NAME, f"is damaged ({error})") from error
    if manifest.adapter_id != adapter_id:
        detail = f"is the one of {manifest.adapter_id}"
        raise AdapterCorrupt(adapter_id, MANIFEST_NAME, detail)
    return manifest


def _get(store: ObjectStore, adapter_id: str, make_key: Callable[[], str]) -> bytes:
    """An object of an adapter; an id that is malformed is as missing as an unknown one."""
    try:
        return store.get(make_key())
    except (ObjectNotFound, ValueError):
        raise AdapterMissing(adapter_id) from None


def _manifest_key(tenant_id: str, adapter_id: str) -> str:
    return adapter_file(tenant_id, adapter_id, MANIFEST_NAME)
