"""What passes between a runner and its training child: the plan in, reports out. Torch-free."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from engine.frozen import Spec
from engine.merging import MergeMethod
from engine.rows import DatasetFormat, RowType
from engine.spec import AdapterKind, Method, Peft

# What a process that shares a run says when another one is gone: never the cause itself.
PROCESS_LOST = "process_lost"


class GraderModel(Spec):
    """A model that the job's grader asks, and whose tokenizer and template it reads.

    `contract` is an adapter's own render contract; None: the base's. `folder` has a reward adapter,
    which the child runs itself; without one the generator is asked.
    """

    base_path: Path
    contract: dict[str, Any] | None = None
    folder: Path | None = None


class Portion(Spec):
    """A dataset among others. share: its weight; of what is replayed, its ratio to the others."""

    dataset_id: str
    path: Path
    format: DatasetFormat
    share: float


class Spread(Spec):
    """The processes that share a run: so many on each of `nodes` machines, one a GPU on them.

    `node` is this machine's number, `local_rank` this process's on it. Those of several machines
    meet at `master`, HOST:PORT of the first one; those of a single one in a file of its work
    folder. `peak_bytes` is what one is expected to use where each has all of the model.
    """

    processes: int = Field(1, ge=1)
    nodes: int = Field(1, ge=1)
    node: int = Field(0, ge=0)
    local_rank: int = Field(0, ge=0)
    master: str = ""
    peak_bytes: int = Field(0, ge=0)

    @property
    def world(self) -> int:
        return self.processes * self.nodes

    def at(self, local_rank: int) -> "Spread":
        """The same for another process of this machine."""
        return self.model_copy(update={"local_rank": local_rank})

    @property
    def rank(self) -> int:
        return self.node * self.processes + self.local_rank


class TrainPlan(Spec):
    """Everything a child needs, as local paths and plain values.

    Of a `mixture`, `dataset_path` is its first part. `init_from` is the folder of the adapter that
    training starts from, `reward_from` that of the reward adapter that scores what the policy says.
    `grader_models` has what the grader asks, by the names it has there. The generator's URL may
    have a password in it: it is for no log.
    `validation` has rows that are only looked at.
    """

    base_name: str
    base_path: Path
    dataset_path: Path
    dataset_format: DatasetFormat
    row_type: RowType
    method: Method
    peft: Peft
    seed: int
    checkpoint_every: int
    work_dir: Path
    resume_from: Path | None
    threads: int
    init_from: Path | None = None
    reward_from: Path | None = None
    grader_models: dict[str, GraderModel] = Field(default_factory=dict)
    generator_url: str = Field("", repr=False)
    generator_key: str = Field("", repr=False)
    judge_patience_s: float = 120.0
    mixture: tuple[Portion, ...] = ()
    replay: Portion | None = None
    validation: Portion | None = None
    spread: Spread = Spread()

    @property
    def row_paths(self) -> tuple[Path, ...]:
        """Where the rows of each of the job's datasets are, in the order of its spec."""
        main = tuple(part.path for part in self.mixture) or (self.dataset_path,)
        beside = [portion.path for portion in (self.replay, self.validation) if portion]
        return (*main, *beside)


class Probe(Spec):
    """log p(token | what is before it) of a few trained tokens, under the tuned model and the base.

    `logprobs[i]` and `base_logprobs[i]` belong to `token_ids[prompt_tokens + i]`; natural log.
    """

    token_ids: tuple[int, ...]
    prompt_tokens: int
    logprobs: tuple[float, ...]
    base_logprobs: tuple[float, ...]


class Parent(Spec):
    """An adapter that is merged: its folder, its weight, and what its manifest says of it.

    `quantization_logprob_gap` is there where it was trained on a base in 4 bits, in nats a token.
    """

    adapter_id: str
    path: Path
    weight: float
    probes: tuple[Probe, ...] = ()
    quantization_logprob_gap: float | None = None


class MergePlan(Spec):
    """Everything a child needs to merge adapters of one base. `peft` is what comes out.

    `contract` is the render contract that the parents share.
    """

    base_name: str
    base_path: Path
    parents: tuple[Parent, ...]
    method: MergeMethod
    peft: Peft
    seed: int
    work_dir: Path
    threads: int
    contract: dict[str, Any]


Plan = TrainPlan | MergePlan
PLAN: TypeAdapter[Plan] = TypeAdapter(Plan)


class ScoreProbe(Spec):
    """The score that a reward model gives to a prompt and an answer."""

    token_ids: tuple[int, ...]
    score: float


class Started(Spec):
    """The model and the rows are ready; the first step is next."""

    type: Literal["started"] = "started"
    total_steps: int
    rows: int
    trained_tokens: int
    trainable_parameters: int
    resumed_step: int


class Stepped(Spec):
    """An optimizer step was made. `metrics` has the loss and whatever else the method reports.

    `seconds` is what it took; the link measures it.
    """

    type: Literal["step"] = "step"
    step: int
    total_steps: int
    epoch: float
    metrics: dict[str, float]
    seconds: float = 0.0


class Evaluated(Spec):
    """The held-out rows were looked at after this step; every name in `metrics` begins `eval_`."""

    type: Literal["evaluation"] = "evaluation"
    step: int
    metrics: dict[str, float]


class Warned(Spec):
    type: Literal["warning"] = "warning"
    message: str


class Logged(Spec):
    """For the operator's log, which the runner writes: an event and its fields, no rows of a client
    and no text of an error.
    """

    type: Literal["log"] = "log"
    event: str
    level: Literal["info", "warning", "error"] = "info"
    fields: dict[str, str | int | float | list[str]] = Field(default_factory=dict)


class Merged(Spec):
    """The adapters are one, with how far that is from the weighted sum of what they add to weights.

    `error`: the difference's Frobenius norm over that of the sum, all layers together.
    `logprob_gap`: the mean difference of a probe's token's log-prob, in nats; None: no probes.
    """

    type: Literal["merged"] = "merged"
    adapters: int
    error: float
    logprob_gap: float | None


class Saved(Spec):
    """A checkpoint is complete in `path`; it may be taken away and deleted."""

    type: Literal["saved"] = "saved"
    step: int
    path: Path
    metrics: dict[str, float]


class Finished(Spec):
    """The adapter's files are in `path`."""

    type: Literal["finished"] = "finished"
    path: Path
    kind: AdapterKind
    training_s: float
    metrics: dict[str, float]
    probes: tuple[Probe, ...]
    scores: tuple[ScoreProbe, ...] = ()
    contract: dict[str, Any]


class Stopped(Spec):
    """The child stopped as it was told; after a pause its last checkpoint was reported before."""

    type: Literal["stopped"] = "stopped"
    directive: Literal["cancel", "pause"]


class Failed(Spec):
    """The attempt is over. `retryable`: the cause may pass, so another attempt makes sense."""

    type: Literal["failed"] = "failed"
    code: str
    message: str
    retryable: bool = False


Report = Annotated[
    Started | Stepped | Evaluated | Warned | Logged | Merged | Saved | Finished | Stopped | Failed,
    Field(discriminator="type"),
]
REPORT: TypeAdapter[Report] = TypeAdapter(Report)
