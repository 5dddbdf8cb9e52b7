"""A job as OpenAI's SDK reads it."""

import time
from typing import Any, Literal

from pydantic import Field

from api.calls import read
from api.envelope import Wire, absent
from api.services import Services
from api.v1.methods import HyperparametersView, numbers_of, theirs
from engine.spec import Online, Peft
from jobs.errors import NotFound
from jobs.model import Job, JobError, JobSpec, Progress, Replay, Status, Weighted

ORGANIZATION = "luthier"
# The share of the steps after which they tell the time better: the first ones wait for the start.
STEADY = 0.05


class FineTuningJob(Wire):
    """OpenAI's fields, then ours.

    `status` is never `validating_files`, since files are validated whole when they are uploaded; it
    may be `paused`. `trained_tokens` are those of the rows times the epochs that were run, where no
    tokens were sampled. `estimated_finish` is said of a job that runs. `error` is that of a failed
    job. `user_provided_suffix` is the job's name.
    """

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None
    estimated_finish: int | None
    status: Status
    model: str
    fine_tuned_model: str | None
    organization_id: str = ORGANIZATION
    training_file: str
    validation_file: str | None
    result_files: tuple[str, ...] = ()
    trained_tokens: int | None
    seed: int
    hyperparameters: HyperparametersView
    method: dict[str, Any]
    integrations: tuple[()] = ()
    metadata: dict[str, str] | None
    error: JobError | None
    user_provided_suffix: str | None
    peft: Peft
    mixture: tuple[Weighted, ...] | None = Field(None, exclude_if=absent)
    replay: Replay | None = Field(None, exclude_if=absent)
    progress: Progress


def view(job: Job) -> FineTuningJob:
    """Raises NotFound for a job that merges: it has no file that it learns from."""
    spec = job.spec
    if not isinstance(spec, JobSpec):
        raise NotFound("job", job.id)
    first = spec.dataset or (spec.mixture[0].dataset if spec.mixture else "")
    return FineTuningJob(
        id=job.id,
        created_at=int(job.created_at),
        finished_at=None if job.finished_at is None else int(job.finished_at),
        estimated_finish=_estimated_finish(job),
        status=job.status,
        model=spec.init or spec.base_model,
        fine_tuned_model=job.adapter_id,
        training_file=first,
        validation_file=spec.validation,
        trained_tokens=_trained_tokens(job, spec),
        seed=spec.seed,
        hyperparameters=numbers_of(spec.method, spec.resources),
        method=theirs(spec.method, spec.resources),
        metadata=spec.metadata or None,
        error=job.error,
        user_provided_suffix=spec.name,
        peft=spec.peft,
        mixture=spec.mixture,
        replay=spec.replay,
        progress=job.progress,
    )


async def require_training(services: Services, tenant_id: str, job_id: str) -> None:
    """Raises NotFound for a job that merges, before anything is done to it."""
    view(await read(services.store, services.store.jobs.get, tenant_id, job_id))


def _estimated_finish(job: Job) -> int | None:
    """By the estimate, and by the steps once a few are done; None where that is over already."""
    if job.status is not Status.RUNNING or job.started_at is None:
        return None
    now, done, total = time.time(), job.progress.step, job.progress.total_steps
    told: list[float] = []
    if job.estimate is not None and job.estimate.seconds is not None:
        told.append(job.started_at + job.estimate.seconds)
    if done and total:
        by_steps = now + (now - job.started_at) * (total - done) / done
        told.insert(0 if done >= total * STEADY else len(told), by_steps)
    return next((int(finish) for finish in told if finish >= now), None)


def _trained_tokens(job: Job, spec: JobSpec) -> int | None:
    if job.status is not Status.SUCCEEDED or job.estimate is None:
        return None
    if isinstance(spec.method, Online) or job.progress.epoch is None:
        return None
    return round(job.estimate.tokens * job.progress.epoch)
