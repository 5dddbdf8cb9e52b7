"""From a finished child to a published adapter: its manifest, its files, its row."""

import hashlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from adapters import registry
from adapters.geometry import base_geometry
from adapters.kinds import Base, validate_adapter
from adapters.manifest import DatasetRef, Lineage, Manifest, Parent, Probe, ScoreProbe
from adapters.tensors import base_shapes
from adapters.validation import validate_full, validate_lora
from engine.plan import Finished
from jobs.model import Adapter, Claim, MergeSpec, Work
from storage.objects import ObjectStore


def adapter_id_of(job_id: str, attempt: int) -> str:
    """Each attempt has one adapter id of its own, so a retry can find what an earlier one left."""
    return "ad_" + hashlib.sha256(f"{job_id}/{attempt}".encode()).hexdigest()[:24]


def publish(
    objects: ObjectStore,
    claim: Claim,
    finished: Finished,
    base_path: Path,
    *,
    parents: Sequence[Manifest] = (),
) -> Adapter:
    """Check and store the files and the manifest; the row, which decides, is the caller's to write.

    `parents` are the manifests of what was merged, in the order of the job's spec.
    Raises AdapterInvalid for a result that could not be served, such as one with NaN in it.
    """
    job = claim.job
    check_files(job.spec, finished.path, base_path)
    manifest = _manifest(claim, finished, _lineage(claim, parents))
    manifest = registry.publish(objects, job.tenant_id, finished.path, manifest)
    return Adapter(
        id=manifest.adapter_id,
        tenant_id=job.tenant_id,
        name=job.spec.name or job.id,
        kind=manifest.kind,
        base_model=manifest.base_model,
        job_id=job.id,
        size_bytes=manifest.size_bytes,
        manifest=manifest.model_dump(mode="json"),
        created_at=manifest.created_at,
    )


def check_files(spec: Work, folder: Path, base_path: Path) -> None:
    """Whether a result can be served on its base. Raises AdapterInvalid."""
    shapes = base_shapes(base_path)
    scored = spec.method.type == "reward"
    # Its rank was admitted when the job was posted.
    if spec.peft.type == "full":
        validate_full(folder, shapes, scored=scored)
    elif scored:
        validate_lora(folder, shapes, max_rank=sys.maxsize, scored=True)
    else:
        base = Base(shapes, lambda: base_geometry(base_path))
        validate_adapter(folder, base, max_rank=sys.maxsize)


def unpublish(objects: ObjectStore, tenant_id: str, job_id: str, attempt: int) -> None:
    """Remove what an attempt may have published; its adapter must have no row."""
    registry.remove(objects, tenant_id, adapter_id_of(job_id, attempt))


def _lineage(claim: Claim, parents: Sequence[Manifest]) -> Lineage:
    job = claim.job
    if isinstance(job.spec, MergeSpec):
        datasets = (ref for manifest in parents for ref in manifest.lineage.datasets)
        return Lineage(
            job_id=job.id,
            attempt=job.attempt,
            datasets=tuple(dict.fromkeys(datasets)),
            parents=tuple(
                Parent(adapter_id=a.id, weight=a.weight) for a in job.spec.method.adapters
            ),
        )
    return Lineage(
        job_id=job.id,
        attempt=job.attempt,
        datasets=tuple(DatasetRef(id=d.id, sha256=d.sha256) for d in claim.datasets.values()),
        parent_adapter_id=job.spec.init,
    )


def _manifest(claim: Claim, finished: Finished, lineage: Lineage) -> Manifest:
    job = claim.job
    return Manifest(
        adapter_id=adapter_id_of(job.id, job.attempt),
        kind=finished.kind,
        base_model=job.spec.base_model,
        base_revision=job.base_revision,
        tokenizer_sha256=finished.contract["tokenizer_sha256"],
        contract=finished.contract,
        lineage=lineage,
        method=job.spec.method.model_dump(mode="json"),
        peft=job.spec.peft.model_dump(mode="json"),
        metrics=dict(finished.metrics),
        probes=tuple(Probe.model_validate(probe.model_dump()) for probe in finished.probes),
        scores=tuple(ScoreProbe.model_validate(score.model_dump()) for score in finished.scores),
        created_at=time.time(),
    )
