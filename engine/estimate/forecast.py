"""The whole estimate of a job: its rows counted, and everything that follows from them."""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from engine.estimate.base import BaseShape
from engine.estimate.counting import Counts, Sides, count, sides
from engine.estimate.memory import memory_parts, peak
from engine.estimate.mixing import Learned, Source, learned, naming
from engine.estimate.model import Device, Earlier, Estimate
from engine.estimate.parameters import trainable_parameters
from engine.estimate.speed import modelled_seconds, time_of
from engine.estimate.work import sampled_tokens, work_of
from engine.render import Renderer
from engine.rows import Row
from engine.spec import Method, Offline, Online, Peft
from engine.steps import total_steps


@dataclass(frozen=True)
class Worker:
    """What trains: a CPU with so many threads, or a GPU; and jobs that have ended on it."""

    device: Device
    threads: int
    earlier: Sequence[Earlier] = ()


@dataclass(frozen=True)
class Asked:
    """A job as far as its cost goes. `reward_peft` is the reward adapter's, where it has one."""

    method: Method
    peft: Peft
    seed: int
    reward_peft: Peft | None = None
    continues: bool = False


def forecast(
    asked: Asked,
    base: BaseShape,
    rows: Iterable[Row],
    renderer: Renderer,
    worker: Worker,
    *,
    stride: int = 1,
    warnings: Sequence[str] = (),
) -> Estimate:
    """Render the rows of one dataset (every `stride`th) and say what the job will take.

    Raises RenderError and EstimateImpossible.
    """
    return forecast_all(asked, base, [Source(rows, stride)], renderer, worker, warnings=warnings)


def forecast_all(
    asked: Asked,
    base: BaseShape,
    sources: Sequence[Source],
    renderer: Renderer,
    worker: Worker,
    *,
    warnings: Sequence[str] = (),
) -> Estimate:
    """The same for the datasets of a mixture, and, last, for what is replayed beside them."""
    method, peft = asked.method, asked.peft
    counted = [_count(source, renderer, method) for source in sources]
    counts = _together(counted)
    epoch = _epoch(counted, sources, method, asked.seed)
    split, steps = epoch.sides, epoch.steps
    longest = max(epoch.row_lengths)
    work = work_of(method, peft, _batched(counts, epoch), _rows(epoch, counts))
    modelled_s = modelled_seconds(base, work, worker.threads)
    time = time_of(modelled_s, worker.earlier, worker.device, work.token_passes)
    parts = memory_parts(
        base,
        method,
        peft,
        longest,
        worker.device,
        reward_peft=asked.reward_peft,
        continues=asked.continues,
    )
    return Estimate(
        rows=counts.rows,
        counted_rows=counts.counted,
        trained_rows=split.examples,
        held_out_rows=split.held_out,
        left_out=sum(round(c.left_out * c.scale) for c in counted),
        fully_masked=sum(round(c.masked * c.scale) for c in counted),
        truncated=sum(round(c.truncated * c.scale) for c in counted),
        longest=max(counts.lengths),
        tokens=split.tokens,
        trained_tokens=split.trained_tokens,
        sampled_tokens=sampled_tokens(method, steps),
        steps=steps,
        packed_rows=epoch.packed_rows,
        trainable_parameters=trainable_parameters(base, method, peft, asked.reward_peft),
        memory=parts,
        peak_memory_bytes=peak(parts),
        token_passes=round(work.token_passes),
        modelled_seconds=modelled_s,
        seconds=time.seconds,
        seconds_from=time.source,
        basis=_basis(asked, base, counts, epoch, time.basis),
        warnings=(*warnings, *epoch.warnings),
    )


def _count(source: Source, renderer: Renderer, method: Method) -> Counts:
    with naming(source):
        return count(source.rows, renderer, method, stride=source.stride)


def _epoch(
    counted: Sequence[Counts], sources: Sequence[Source], method: Method, seed: int
) -> Learned:
    if len(counted) > 1 or getattr(method, "packing", False):
        return learned(counted, sources, method, seed)
    split = sides(counted[0], method, seed)
    return Learned(split, total_steps(method, split.examples), counted[0].lengths, None, ())


def _together(counted: Sequence[Counts]) -> Counts:
    """Several datasets as one; what was counted of the one with the largest stride says of all."""
    if len(counted) == 1:
        return counted[0]
    whole = Counts(max(counts.stride for counts in counted))
    for counts in counted:
        whole.rows += counts.rows
        whole.counted += counts.counted
        whole.lengths.extend(counts.lengths)
    return whole


def _batched(counts: Counts, epoch: Learned) -> Counts:
    """Counts whose lengths are those of the rows that batches are made of."""
    return replace(counts, lengths=array("Q", epoch.row_lengths))


def _rows(epoch: Learned, counts: Counts) -> Sides:
    """The sides in rows: what is held out is not packed, so it weighs as much as its tokens do."""
    split = epoch.sides
    if epoch.packed_rows is None:
        return split
    shorter = fmean(counts.lengths) / fmean(epoch.row_lengths)
    return replace(split, examples=epoch.packed_rows, held_out=round(split.held_out * shorter))


def _basis(
    asked: Asked, base: BaseShape, counts: Counts, epoch: Learned, of_time: str
) -> dict[str, str]:
    """Of each group of figures, where it is from."""
    method = asked.method
    rows = "every row, rendered and tokenized as the trainer does"
    if counts.stride > 1:
        rows = f"one row in {counts.stride}, {counts.counted:,} in all, scaled up to all of them"
    steps = "max_steps" if method.max_steps else f"{epoch.sides.examples:,} rows"
    if epoch.packed_rows is not None and not method.max_steps:
        steps = f"{epoch.packed_rows:,} rows of packed examples"
        if not epoch.counted and counts.stride == 1:
            steps += " in the first epoch, as if every epoch had as many"
    if isinstance(method, Offline) and method.early_stopping_patience:
        steps += ", at most: early stopping may end the run before"
    if isinstance(method, Online) and method.on_max_kl == "stop" and method.max_kl:
        steps += ", at most: max_kl may end the run before"
    shapes = "the shapes in the base's files"
    if base.assumed:
        shapes = "config.json, because the base's weights are not on this machine"
    return {
        "tokens": rows,
        "steps": steps,
        "trainable_parameters": shapes,
        "memory": "the longest rows in one batch; what is not needed at once is not added",
        "seconds": of_time,
    }
