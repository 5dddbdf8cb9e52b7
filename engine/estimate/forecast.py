"""The whole estimate of a job: its rows counted, and everything that follows from them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engine.estimate.base import BaseShape
from engine.estimate.counting import Counts, Sides, count, sides
from engine.estimate.memory import memory_parts, peak
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
    """Render the rows (every `stride`th) and say what the job will take.

    Raises RenderError and EstimateImpossible.
    """
    method, peft = asked.method, asked.peft
    counts = count(rows, renderer, method, stride=stride)
    split = sides(counts, method, asked.seed)
    longest = max(counts.lengths)
    steps = total_steps(method, split.examples)
    work = work_of(method, peft, counts, split)
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
        left_out=round(counts.left_out * counts.scale),
        fully_masked=round(counts.masked * counts.scale),
        truncated=round(counts.truncated * counts.scale),
        longest=longest,
        tokens=split.tokens,
        trained_tokens=split.trained_tokens,
        sampled_tokens=sampled_tokens(method, steps),
        steps=steps,
        trainable_parameters=trainable_parameters(base, method, peft, asked.reward_peft),
        memory=parts,
        peak_memory_bytes=peak(parts),
        token_passes=round(work.token_passes),
        modelled_seconds=modelled_s,
        seconds=time.seconds,
        seconds_from=time.source,
        basis=_basis(asked, base, counts, split, time.basis),
        warnings=tuple(warnings),
    )


def _basis(
    asked: Asked, base: BaseShape, counts: Counts, split: Sides, of_time: str
) -> dict[str, str]:
    """Of each group of figures, where it is from."""
    method = asked.method
    rows = "every row, rendered and tokenized as the trainer does"
    if counts.stride > 1:
        rows = f"one row in {counts.stride}, {counts.counted:,} in all, scaled up to all of them"
    steps = "max_steps" if method.max_steps else f"{split.examples:,} rows"
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
