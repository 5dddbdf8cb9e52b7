"""What a child needs to merge adapters, from a job's spec and the folders that were fetched."""

from collections.abc import Sequence
from pathlib import Path

from adapters.manifest import Manifest
from engine.bases import BaseModel
from engine.plan import MergePlan, Parent, Probe
from jobs.model import MergeSpec

GAP = "quantization_logprob_gap"  # the metric of an adapter that was trained on a base in 4 bits


def merge_plan(
    spec: MergeSpec,
    base: BaseModel,
    fetched: Sequence[tuple[Path, Manifest]],
    work_dir: Path,
    *,
    threads: int,
) -> MergePlan:
    """`fetched`: the parents' folders and manifests, in the order of the spec."""
    parents = [
        _parent(folder, manifest, adapter.weight)
        for (folder, manifest), adapter in zip(fetched, spec.method.adapters, strict=True)
    ]
    return MergePlan(
        base_name=base.name,
        base_path=base.path,
        parents=tuple(parents),
        method=spec.method,
        peft=spec.peft,
        seed=spec.seed,
        work_dir=work_dir,
        threads=threads,
        contract=dict(fetched[0][1].contract),
    )


def _parent(folder: Path, manifest: Manifest, weight: float) -> Parent:
    gap = manifest.metrics.get(GAP)
    return Parent(
        adapter_id=manifest.adapter_id,
        path=folder,
        weight=weight,
        probes=tuple(Probe.model_validate(probe.model_dump()) for probe in manifest.probes),
        quantization_logprob_gap=float(gap) if isinstance(gap, int | float) else None,
    )
