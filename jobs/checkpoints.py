"""Checkpoints in the object store: files first, then the row that makes them count."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from jobs.model import Checkpoint, CheckpointFile, Job, new_id
from storage.keys import checkpoint_file, checkpoint_prefix
from storage.objects import ObjectStore, StorageError


class CheckpointCorrupt(StorageError):
    """A stored checkpoint is not what was saved; the message names the file."""


def store_checkpoint(
    objects: ObjectStore, job: Job, step: int, folder: Path, metrics: dict[str, float]
) -> Checkpoint:
    """Upload a flat folder of training state; the row is the caller's to write."""
    files = []
    for path in sorted(folder.iterdir()):
        if not path.is_file():
            raise ValueError(f"{path.name!r} in a checkpoint is no plain file")
        key = checkpoint_file(job.tenant_id, job.id, job.attempt, step, path.name)
        objects.put_file(key, path)
        files.append(
            CheckpointFile(name=path.name, size_bytes=path.stat().st_size, sha256=_sha256(path))
        )
    return Checkpoint(
        id=new_id("ck"),
        job_id=job.id,
        attempt=job.attempt,
        step=step,
        files=tuple(files),
        metrics=dict(metrics),
        created_at=0.0,
    )


def fetch_checkpoint(
    objects: ObjectStore, tenant_id: str, checkpoint: Checkpoint, root: Path
) -> Path:
    """Bring it to `root/checkpoint-<step>`, every file checked. Raises CheckpointCorrupt."""
    folder = root / f"checkpoint-{checkpoint.step}"
    fetch_files(objects, tenant_id, checkpoint, checkpoint.files, folder)
    return folder


def fetch_files(
    objects: ObjectStore,
    tenant_id: str,
    checkpoint: Checkpoint,
    files: Iterable[CheckpointFile],
    folder: Path,
) -> None:
    """Bring some of its files to a new folder, each checked. Raises CheckpointCorrupt."""
    folder.mkdir(parents=True)
    for file in files:
        key = checkpoint_file(
            tenant_id, checkpoint.job_id, checkpoint.attempt, checkpoint.step, file.name
        )
        if objects.get_file(key, folder / file.name) != file.sha256:
            raise CheckpointCorrupt(
                f"{file.name} of checkpoint {checkpoint.id} is damaged in the object store"
            )


def remove_checkpoint(objects: ObjectStore, tenant_id: str, checkpoint: Checkpoint) -> None:
    objects.delete_prefix(
        checkpoint_prefix(tenant_id, checkpoint.job_id, checkpoint.attempt, checkpoint.step)
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
