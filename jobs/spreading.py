"""Over which processes an attempt's training is spread, and what one of them is expected to use."""

from engine.bases import BaseModel
from engine.estimate.errors import EstimateImpossible
from engine.estimate.memory import memory_parts, peak
from engine.estimate.model import Device
from engine.plan import Spread
from jobs.estimating import shape_of
from jobs.model import JobSpec


def spread_of(spec: JobSpec, base: BaseModel, device: Device, *, node: int, master: str) -> Spread:
    """`node` is this machine's number among the job's, `master` where the first one is met."""
    wanted = spec.resources
    if wanted.processes == 1:
        return Spread()
    return Spread(
        processes=wanted.gpus,
        nodes=wanted.nodes,
        node=node,
        master=master,
        peak_bytes=_peak_bytes(spec, base, device),
    )


def _peak_bytes(spec: JobSpec, base: BaseModel, device: Device) -> int:
    """With rows as long as they may be; 0 where the base's sizes are not known."""
    try:
        shape = shape_of(base)
    except EstimateImpossible:
        return 0
    longest = spec.method.max_length
    parts = memory_parts(
        shape, spec.method, spec.peft, longest, device, continues=spec.init is not None
    )
    return peak(parts)
