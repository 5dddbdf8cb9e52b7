"""How long work takes: by a model of the machine, set right by what earlier jobs took."""

from collections.abc import Sequence
from statistics import median
from typing import Literal, NamedTuple

from engine.estimate.base import BaseShape
from engine.estimate.model import Device, Earlier
from engine.estimate.work import Work

# float32 on one core of an AMD EPYC with AVX-512, as torch's matrix products reach it in training.
FLOPS_A_CORE = 22e9
# What a call of one layer takes however little it computes.
LAYER_CALL_S = 0.7e-3


class Time(NamedTuple):
    """`seconds` is None where nothing is known of the workers."""

    seconds: float | None
    source: Literal["earlier_jobs", "model"] | None
    basis: str


def modelled_seconds(base: BaseShape, work: Work, threads: int) -> float:
    """On a CPU: two operations a parameter and token pass, and what each call costs besides."""
    head = base.vocab_size * base.hidden_size
    operations = 2 * (base.linear_parameters * work.token_passes + head * work.head_passes)
    return operations / (FLOPS_A_CORE * threads) + work.calls * base.layers * LAYER_CALL_S


def time_of(modelled_s: float, earlier: Sequence[Earlier], device: Device, passes: float) -> Time:
    """The model's time, times what it was off by in earlier jobs like this one."""
    if earlier:
        off_by = median(job.seconds / job.modelled_seconds for job in earlier)
        seconds = modelled_s * off_by
        what = "job" if len(earlier) == 1 else "jobs"
        return Time(
            seconds,
            "earlier_jobs",
            f"{len(earlier)} earlier {what} on this base, method and peft, scaled by the work: "
            f"{passes / seconds:,.0f} token passes a second",
        )
    if device == "cuda":
        text = "no job on this base, method and peft has ended on these workers yet"
        return Time(None, None, text)
    text = (
        f"a model of a CPU: {FLOPS_A_CORE / 1e9:.0f} GFLOP/s a core; no job on this base, method "
        "and peft has ended here yet"
    )
    return Time(modelled_s, "model", text)
