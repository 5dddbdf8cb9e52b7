"""The nouns of a job's life: spec, status, event, checkpoint, and the records beside them."""

import re
import secrets
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
)

from adapters.manifest import AdapterKind
from engine.estimate.model import Actual, Estimate
from engine.frozen import Asked
from engine.merging import MergeMethod
from engine.rows import DatasetFormat, RowType
from engine.spec import LoraPeft, Method, Peft, Resources
from jobs.errors import NotFound
from jobs.keys import Scope
from jobs.origin import Origin


class Status(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


# Every change of a job's status that may happen; nothing else does.
TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.QUEUED: frozenset({Status.RUNNING, Status.CANCELLED, Status.PAUSED, Status.FAILED}),
    Status.RUNNING: frozenset(
        {Status.SUCCEEDED, Status.FAILED, Status.CANCELLED, Status.PAUSED, Status.QUEUED}
    ),
    Status.PAUSED: frozenset({Status.QUEUED, Status.CANCELLED}),
    Status.SUCCEEDED: frozenset(),
    Status.FAILED: frozenset(),
    Status.CANCELLED: frozenset(),
}
TERMINAL = frozenset(status for status, after in TRANSITIONS.items() if not after)

Directive = Literal["continue", "cancel", "pause"]
Level = Literal["info", "warn", "error"]

ID_SHAPE = re.compile(r"[a-z]{2,3}_[0-9a-f]{24}")


def new_id(prefix: str) -> str:
    """An opaque id: the prefix and 96 random bits."""
    return f"{prefix}_{secrets.token_hex(12)}"


def checked_id(kind: str, id: str) -> str:
    """The id, unless it cannot be one: NotFound then, so that nothing odd reaches the database."""
    if not ID_SHAPE.fullmatch(id):
        raise NotFound(kind, id)
    return id


# No control characters: they break what shows a name, and PostgreSQL stores no NUL.
JobName = Annotated[str, StringConstraints(max_length=128, pattern=r"^[^\x00-\x1f\x7f]*$")]
MAX_METADATA = 16  # pairs of a job
_NO_NUL = r"^[^\x00]*$"  # PostgreSQL finds no text with one
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=_NO_NUL)]
MetadataValue = Annotated[str, StringConstraints(max_length=512, pattern=_NO_NUL)]


class Weighted(Asked):
    """A dataset of a mixture. Its rows are `weight` over the sum of all weights of an epoch.

    An epoch has as many rows as all of the datasets together, without those that are held out. One
    whose share is smaller than itself is read on from epoch to epoch, one whose share is larger is
    repeated, each in an order that the job's seed draws; no row comes again before all others of
    its dataset came as often.
    """

    dataset: str = Field(min_length=1, max_length=64)
    weight: float = Field(1.0, gt=0, le=1e6, allow_inf_nan=False)


class Replay(Asked):
    """Rows of an earlier task, against forgetting it: `ratio` times the other rows of an epoch.

    They come on top of those, one at least, read on from epoch to epoch as in a mixture.
    """

    dataset: str = Field(min_length=1, max_length=64)
    ratio: float = Field(0.1, gt=0, le=10, allow_inf_nan=False)


class JobSpec(Asked):
    """What a client asks for: which base learns what from which rows, and how.

    The rows are those of one `dataset`, or of the datasets of a `mixture`; `replay` adds some of an
    earlier task. `validation` is a dataset that is looked at and never learned from, in place of
    rows that are held out of the others. `init` is the adapter that training goes on with; `peft`,
    left out, is then that adapter's. A reward job takes one that generates, with a new head, or a
    reward model, with its head.
    """

    base_model: str = Field(min_length=1, max_length=256)
    mixture: tuple[Weighted, ...] | None = Field(None, max_length=64)
    dataset: str | None = Field(None, min_length=1, max_length=64, validate_default=True)
    replay: Replay | None = None
    validation: str | None = Field(
        None, min_length=1, max_length=64, exclude_if=lambda dataset: dataset is None
    )
    method: Method
    peft: Peft = Field(default_factory=LoraPeft)
    init: str | None = Field(None, min_length=1, max_length=64)
    seed: int = Field(0, ge=0, lt=2**31)
    checkpoint_every: int = Field(50, ge=1, le=1_000_000)
    resources: Resources = Field(Resources(), exclude_if=lambda asked: asked == Resources())
    name: JobName | None = None
    metadata: dict[MetadataKey, MetadataValue] = Field(
        default_factory=dict, max_length=MAX_METADATA
    )

    @field_validator("mixture")
    @classmethod
    def _has_parts(cls, mixture: tuple[Weighted, ...] | None) -> tuple[Weighted, ...] | None:
        """Said here, because pydantic also says of parts that are wrong that there are none."""
        if mixture is not None and not mixture:
            raise ValueError("name at least one dataset")
        return mixture

    @field_validator("dataset")
    @classmethod
    def _has_rows(cls, dataset: str | None, others: ValidationInfo) -> str | None:
        if "mixture" in others.data and (dataset is None) == (others.data["mixture"] is None):
            raise ValueError("give exactly one of `dataset`, a dataset's id, and `mixture`")
        return dataset


class MergeSpec(Asked):
    """A job that makes one of several adapters, or of one and its base; `peft` is the result's."""

    base_model: str = Field(min_length=1, max_length=256)
    method: MergeMethod
    peft: Peft
    seed: int = Field(0, ge=0, lt=2**31)
    name: JobName | None = None
    metadata: dict[MetadataKey, MetadataValue] = Field(
        default_factory=dict, max_length=MAX_METADATA
    )


Work = JobSpec | MergeSpec


class Record(BaseModel):
    """A row as the store hands it out."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Tenant(Record):
    """`served_at`: when a worker last took one of its jobs."""

    id: str
    name: str
    created_at: float
    served_at: float | None = None


class ApiKey(Record):
    id: str
    tenant_id: str
    name: str
    prefix: str
    scopes: tuple[Scope, ...]
    created_at: float
    revoked_at: float | None


class Dataset(Record):
    """`expires_after_s` counts from `created_at`; None: it stays until it is deleted."""

    id: str
    tenant_id: str
    name: str
    format: DatasetFormat
    row_type: RowType
    rows: int
    size_bytes: int
    sha256: str
    duplicates: int
    warnings: tuple[str, ...]
    created_at: float
    expires_after_s: int | None = None

    @property
    def expires_at(self) -> float | None:
        return None if self.expires_after_s is None else self.created_at + self.expires_after_s


class Upload(Record):
    """A file that comes in parts, of `size_bytes` together; `expires_after_s` is of its dataset.

    `late`: its hour is over. `completed_by` is the hash of what completed it.
    """

    id: str
    tenant_id: str
    name: str
    format: DatasetFormat
    size_bytes: int
    expires_after_s: int | None
    status: Literal["pending", "completed", "cancelled"]
    dataset_id: str | None = None
    completed_by: str | None = None
    created_at: float
    late: bool = False


class UploadPart(Record):
    id: str
    upload_id: str
    size_bytes: int
    created_at: float


class JobError(Record):
    """Why a job failed: a code to act on, and a text that says what to do next."""

    code: str
    message: str
    param: str | None = None


class Progress(Record):
    """Where an attempt is."""

    step: int = 0
    total_steps: int | None = None
    epoch: float | None = None
    loss: float | None = None


class Timings(Record):
    """Where a job's wall-clock time went, in seconds; what is not there has not happened yet.

    Of a job that ran in several attempts, `training_s` is the last one's.
    """

    queued_s: float | None = None
    first_step_s: float | None = None
    training_s: float | None = None
    total_s: float | None = None


class Job(Record):
    id: str
    tenant_id: str
    status: Status
    spec: Work
    base_revision: str
    attempt: int
    priority: int
    requested: Literal["cancel", "pause"] | None
    progress: Progress
    timings: Timings
    error: JobError | None
    adapter_id: str | None
    pipeline_id: str | None = None
    stage: str | None = None
    estimate: Estimate | None = None
    actual: Actual | None = None
    created_at: float
    started_at: float | None
    finished_at: float | None


class Event(Record):
    job_id: str
    seq: int
    attempt: int
    created_at: float
    level: Level
    type: Literal["state", "metrics", "message", "checkpoint"]
    message: str
    data: dict[str, Any]


class NewEvent(Record):
    """An event before the store has numbered it."""

    type: Literal["state", "metrics", "message", "checkpoint"]
    message: str
    level: Level = "info"
    data: dict[str, Any] = Field(default_factory=dict)


class CheckpointFile(Record):
    name: str
    size_bytes: int
    sha256: str


class Checkpoint(Record):
    """Resumable training state in the object store, complete because it has a row."""

    id: str
    job_id: str
    attempt: int
    step: int
    files: tuple[CheckpointFile, ...]
    metrics: dict[str, Any]
    created_at: float


class Adapter(Record):
    id: str
    tenant_id: str
    name: str
    kind: AdapterKind
    base_model: str
    job_id: str | None
    size_bytes: int
    manifest: dict[str, Any]
    created_at: float


class Claim(Record):
    """What a worker holds while it runs an attempt. `job.attempt` is the fencing token.

    `datasets` are by the field that names each; a merge has none.
    """

    job: Job
    datasets: dict[str, Dataset]
    checkpoint: Checkpoint | None
    origin: Origin = Origin()
