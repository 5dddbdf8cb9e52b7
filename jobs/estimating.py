"""A job's estimate, from its rows in a file, its base, and what earlier jobs took."""

import json
from collections.abc import Sequence
from pathlib import Path

from adapters.errors import AdapterError
from adapters.tensors import base_shapes
from engine.bases import BaseModel
from engine.estimate.base import BaseShape, base_shape
from engine.estimate.counting import strides_for
from engine.estimate.forecast import Asked, Worker, forecast_all
from engine.estimate.mixing import Source
from engine.estimate.model import Device, Estimate
from engine.generation_prompt import prompt_warnings
from engine.graders import asking
from engine.render import Renderer
from engine.rows import iter_rows
from engine.spec import GrpoMethod, Method, Peft
from jobs.inputs import REWARD, grader_of, inputs_of, model_field
from jobs.mixture import DATASET, REPLAY, VALIDATION, share_of
from jobs.model import Dataset, JobSpec
from jobs.sources import source_of
from jobs.store import Store

# A dataset with the field that names it, and where a copy of its rows is.
Rows = tuple[str, Dataset, Path]


def estimate_job(
    store: Store,
    tenant_id: str,
    spec: JobSpec,
    base: BaseModel,
    rows: Sequence[Rows],
    renderer: Renderer,
    *,
    queue: str,
    device: Device,
    threads: int,
) -> Estimate:
    """What an admitted job will take; `rows` are copies of its datasets, in its spec's order.

    Raises RenderError and EstimateImpossible, and NotFound where the reward adapter is gone.
    """
    asked = Asked(
        method=_shared(spec),
        peft=spec.peft,
        seed=spec.seed,
        reward_peft=_reward_peft(store, tenant_id, spec),
        continues=spec.init is not None,
    )
    found = forecast_all(
        asked,
        shape_of(base),
        _sources(spec, [source for source in rows if source[0] != VALIDATION]),
        renderer,
        Worker(device, threads, store.throughputs.earlier(queue, spec)),
        warnings=prompt_warnings(renderer.contract),
    )
    looked_at = [dataset.rows for field, dataset, _ in rows if field == VALIDATION]
    return found.model_copy(update={"held_out_rows": looked_at[0]}) if looked_at else found


def _shared(spec: JobSpec) -> Method:
    """The method as all GPUs of the job together have it: so much larger are its steps."""
    batches = spec.method.gradient_accumulation_steps * spec.resources.processes
    return spec.method.model_copy(update={"gradient_accumulation_steps": batches})


def _sources(spec: JobSpec, rows: Sequence[Rows]) -> list[Source]:
    strides = strides_for([(dataset.rows, dataset.size_bytes) for _, dataset, _ in rows])
    return [
        Source(
            iter_rows(path, dataset.format, dataset.row_type),
            stride,
            name="" if field == DATASET else dataset.id,
            share=share_of(spec, field),
            replayed=field == REPLAY,
        )
        for (field, dataset, path), stride in zip(rows, strides, strict=True)
    ]


def shape_of(base: BaseModel) -> BaseShape:
    """From the weights' headers where they are here, else from config.json alone."""
    config = json.loads((base.path / "config.json").read_bytes())
    try:
        tensors = base_shapes(base.path)
    except AdapterError:
        tensors = None  # only its small files are on this machine
    return base_shape(config, tensors)


def _reward_peft(store: Store, tenant_id: str, spec: JobSpec) -> Peft | None:
    """Of the reward model; without one, of the first reward adapter in GRPO's grader.

    Others beside that one are small: they share its base. PPO's value function is of this kind
    where there is a reward model, and of the policy's where a grader gives the reward.
    """
    inputs = inputs_of(spec)
    if REWARD in inputs:
        return source_of(store.adapters.get(tenant_id, inputs[REWARD])).peft
    if not isinstance(spec.method, GrpoMethod):
        return None
    named = [
        inputs[f] for where, _ in asking(grader_of(spec)) if (f := model_field(where)) in inputs
    ]
    found = (source_of(store.adapters.get(tenant_id, adapter_id)) for adapter_id in named)
    return next((source.peft for source in found if source.kind == "reward"), None)
