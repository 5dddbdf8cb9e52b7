"""A checkpoint published as an adapter: its weights alone, checked as any result is."""

import hashlib
import json
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapters import registry
from adapters.manifest import AdapterKind, DatasetRef, Lineage, Manifest
from engine.bases import BaseModel
from jobs.checkpoints import fetch_files
from jobs.errors import Conflict, NotFound
from jobs.mixture import datasets_of
from jobs.model import Adapter, Checkpoint, Job, JobSpec
from jobs.publishing import check_files
from jobs.sources import kind_of
from jobs.store import Store
from storage.objects import ObjectNotFound, ObjectStore

CONFIG = "adapter_config.json"
# What an adapter has of a checkpoint; the rest is how training would go on.
PEFT_FILE = re.compile(r"adapter_config\.json|adapter_model\.safetensors")
MODEL_FILE = re.compile(
    r"(generation_)?config\.json|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
)
# Beside a whole model, so that its folder can be used alone.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
NAME_MAX = 128


def promoted(store: Store, tenant_id: str, job_id: str, checkpoint_id: str) -> Adapter | None:
    """The adapter that this checkpoint was published as, if it was; it outlives the checkpoint."""
    try:
        adapter = store.adapters.get(tenant_id, promoted_id(checkpoint_id))
    except NotFound:
        return None
    return adapter if adapter.job_id == job_id else None


def promoted_id(checkpoint_id: str) -> str:
    """A checkpoint has one adapter id, whoever publishes it and how often."""
    return "ad_" + hashlib.sha256(checkpoint_id.encode()).hexdigest()[:24]


def promote(
    store: Store,
    objects: ObjectStore,
    job: Job,
    checkpoint: Checkpoint,
    base: BaseModel,
    contract: Mapping[str, Any],
    work_dir: Path,
) -> Adapter:
    """Publish a checkpoint. `contract` is the base's, as training would have written it down.

    Raises Conflict when the base is not the one the job trained on, AdapterInvalid for weights that
    could not be served, CheckpointCorrupt, and NotFound when the job lets go of the checkpoint
    meanwhile. What a failure leaves in the object store has no row, and is taken up when this is
    tried again.
    """
    if base.revision != job.base_revision:
        raise Conflict(
            f"Base model {base.name!r} changed on the server since job {job.id} was posted; its "
            "checkpoints fit the base of then only."
        )
    kind = kind_of(_learned(job))
    folder = work_dir / "adapter"
    _fetch(store, objects, job, checkpoint, folder)
    if job.spec.peft.type == "full":
        _add_tokenizer(base.path, folder)
    elif (folder / CONFIG).is_file():
        _settle(folder / CONFIG, base.name)
    check_files(job.spec, folder, base.path)
    manifest = _manifest(store, job, checkpoint, kind, contract)
    manifest = registry.publish(objects, job.tenant_id, folder, manifest)
    return store.adapters.add_once(_row(job, checkpoint, manifest))


def _learned(job: Job) -> JobSpec:
    assert isinstance(job.spec, JobSpec), "a merge has no checkpoints"
    return job.spec


def _fetch(
    store: Store,
    objects: ObjectStore,
    job: Job,
    checkpoint: Checkpoint,
    folder: Path,
) -> None:
    wanted = MODEL_FILE if job.spec.peft.type == "full" else PEFT_FILE
    files = [file for file in checkpoint.files if wanted.fullmatch(file.name)]
    try:
        fetch_files(objects, job.tenant_id, checkpoint, files, folder)
    except ObjectNotFound:
        store.jobs.checkpoint(job.tenant_id, job.id, checkpoint.id)  # NotFound: let go of just now
        raise


def _add_tokenizer(base: Path, folder: Path) -> None:
    for name in TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copy(base / name, folder / name)


def _settle(path: Path, base_name: str) -> None:
    """Name the base as clients do instead of by a worker's folder, and order what peft has as sets.

    The same bytes as training writes at its end.
    """
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = base_name
    if config.get("prefix_projection"):  # the weights are what it made
        config |= {"prefix_projection": False, "encoder_hidden_size": None}
    for name in ("target_modules", "modules_to_save", "exclude_modules"):
        if isinstance(config.get(name), list):
            config[name] = sorted(config[name])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _manifest(
    store: Store,
    job: Job,
    checkpoint: Checkpoint,
    kind: AdapterKind,
    contract: Mapping[str, Any],
) -> Manifest:
    """Without probes: nobody has asked this model for log-probs."""
    return Manifest(
        adapter_id=promoted_id(checkpoint.id),
        kind=kind,
        base_model=job.spec.base_model,
        base_revision=job.base_revision,
        tokenizer_sha256=contract["tokenizer_sha256"],
        contract=dict(contract),
        lineage=Lineage(
            job_id=job.id,
            attempt=checkpoint.attempt,
            checkpoint_id=checkpoint.id,
            step=checkpoint.step,
            datasets=_datasets(store, job),
            parent_adapter_id=_learned(job).init,
        ),
        method=job.spec.method.model_dump(mode="json"),
        peft=job.spec.peft.model_dump(mode="json"),
        metrics=checkpoint.metrics,
        created_at=time.time(),
    )


def _datasets(store: Store, job: Job) -> tuple[DatasetRef, ...]:
    """Without those that were deleted, and with them their hash, after the job had ended."""
    found = []
    for dataset_id in datasets_of(_learned(job)).values():
        try:
            found.append(store.datasets.get(job.tenant_id, dataset_id))
        except NotFound:
            continue
    return tuple(DatasetRef(id=dataset.id, sha256=dataset.sha256) for dataset in found)


def _row(job: Job, checkpoint: Checkpoint, manifest: Manifest) -> Adapter:
    step = f" at step {checkpoint.step}"
    return Adapter(
        id=manifest.adapter_id,
        tenant_id=job.tenant_id,
        name=(job.spec.name or job.id)[: NAME_MAX - len(step)] + step,
        kind=manifest.kind,
        base_model=manifest.base_model,
        job_id=job.id,
        size_bytes=manifest.size_bytes,
        manifest=manifest.model_dump(mode="json"),
        created_at=manifest.created_at,
    )
