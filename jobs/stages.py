"""The nouns of a pipeline: named stages, each a job, and how the whole stands by how they stand."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from engine.frozen import Asked
from jobs.inputs import stage_of
from jobs.model import JobError, JobName, JobSpec, MetadataKey, MetadataValue, Record, Status

StageName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]


class PipelineSpec(Asked):
    """Jobs that start from each other's results: `@sft` is the adapter that stage `sft` makes."""

    stages: dict[StageName, JobSpec] = Field(min_length=1, max_length=32)
    name: JobName | None = None
    metadata: dict[MetadataKey, MetadataValue] = Field(default_factory=dict, max_length=16)


@dataclass(frozen=True)
class PlannedStage:
    """A stage that can run: its job, with `@stage` where an adapter's id will be."""

    name: str
    spec: JobSpec
    base_revision: str


class StageState(StrEnum):
    """`waiting` for other stages; then what its job is, or `skipped` when it will have none."""

    WAITING = "waiting"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"


LIVE = frozenset({StageState.WAITING, StageState.QUEUED, StageState.RUNNING, StageState.PAUSED})


class Stage(Record):
    """One job of a pipeline, before it exists and after."""

    name: str
    spec: JobSpec
    base_revision: str
    inputs: dict[str, str]
    state: StageState
    job_id: str | None = None
    adapter_id: str | None = None
    error: JobError | None = None
    finished_at: float | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """The stages whose adapters it starts from."""
        named = (stage_of(source) for source in self.inputs.values())
        return tuple(dict.fromkeys(name for name in named if name is not None))


class Pipeline(Record):
    """Stages in the order they were posted in. `requested` waits for jobs that still run."""

    id: str
    tenant_id: str
    name: str | None
    metadata: dict[str, str]
    status: Status
    requested: Literal["cancel"] | None
    stages: tuple[Stage, ...]
    created_at: float
    finished_at: float | None


def status_of(stages: Iterable[Stage], *, cancelled: bool) -> Status:
    """Of the whole: it goes on while any stage does, and is then as good as its worst."""
    states = {stage.state for stage in stages}
    if states & LIVE:
        begun = states - {StageState.WAITING, StageState.QUEUED}
        return Status.RUNNING if begun else Status.QUEUED
    if cancelled:
        return Status.CANCELLED
    for bad in (StageState.FAILED, StageState.CANCELLED):
        if bad in states:
            return Status(bad)
    return Status.SUCCEEDED


def verdict(stage: Stage, stages: Mapping[str, Stage]) -> Literal["wait", "start"] | JobError:
    """What a waiting stage is to do, by those that it needs: an error says why it never can."""
    needed = [stages[name] for name in stage.needs]
    for source in needed:
        if source.state not in LIVE and source.state is not StageState.SUCCEEDED:
            return _cause(source)
    ready = all(source.state is StageState.SUCCEEDED for source in needed)
    return "start" if ready else "wait"


def _cause(source: Stage) -> JobError:
    """Why what needs this stage is skipped: the first cause, also over several stages."""
    if source.state is StageState.SKIPPED and source.error is not None:
        return source.error
    param = f"stages.{source.name}"
    if source.state is StageState.FAILED and source.error is not None:
        message = f"Stage {source.name!r} failed ({source.error.code}): {source.error.message}"
        return JobError(code="stage_failed", message=message, param=param)
    message = f"Stage {source.name!r} was cancelled."
    return JobError(code="stage_cancelled", message=message, param=param)
