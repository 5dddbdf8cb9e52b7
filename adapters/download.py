"""A published adapter as one tar, streamed from the store and checked on the way."""

import hashlib
from collections.abc import Iterator

from adapters.archive import tar_stream
from adapters.errors import AdapterCorrupt
from adapters.manifest import MANIFEST_NAME, FileEntry
from adapters.registry import read_manifest, sealed_manifest
from storage.keys import adapter_file
from storage.objects import ObjectNotFound, ObjectStore


def download(store: ObjectStore, tenant_id: str, adapter_id: str) -> Iterator[bytes]:
    """The adapter's files and manifest as a tar that PEFT loads once unpacked.

    AdapterMissing and AdapterCorrupt are raised by the call. A file that turns out to be damaged
    while it is sent raises AdapterCorrupt before its end, so that the archive is cut, not wrong.
    """
    manifest = read_manifest(store, tenant_id, adapter_id)
    raw = sealed_manifest(store, tenant_id, adapter_id)
    files = [
        (e.name, e.size_bytes, _checked(store, tenant_id, adapter_id, e)) for e in manifest.files
    ]
    return tar_stream([*files, (MANIFEST_NAME, len(raw), [raw])])


def _checked(
    store: ObjectStore, tenant_id: str, adapter_id: str, entry: FileEntry
) -> Iterator[bytes]:
    """A file's chunks; the last one is held back until the hash is known to be right."""
    digest, held = hashlib.sha256(), b""
    try:
        for chunk in store.stream(adapter_file(tenant_id, adapter_id, entry.name)):
            digest.update(chunk)
            if held:
                yield held
            held = chunk
    except ObjectNotFound as error:
        raise AdapterCorrupt(adapter_id, entry.name, "is missing") from error
    if digest.hexdigest() != entry.sha256:
        raise AdapterCorrupt(adapter_id, entry.name, "is damaged")
    yield held
