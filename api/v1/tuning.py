"""/v1/fine_tuning/jobs: jobs in OpenAI's shapes. They are the jobs of /jobs, without merges."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Query, Request
from pydantic import Field, ValidationError

from api import jobs
from api.auth import TenantId
from api.bodies import StrictRoute
from api.calls import in_thread, read
from api.envelope import Body as Asked
from api.envelope import ListOf, refusals
from api.errors import Invalid
from api.idempotency import IdempotencyKey, by_body, by_key
from api.paging import After, JobId, Limit, known
from api.services import FromServices, Services
from api.v1.job import FineTuningJob, require_training, view
from api.v1.methods import FIELDS, OPEN_BY_DEFAULT, bounded, ours, problems_of
from api.v1.voices import no_model
from engine.bases import BaseNotAllowed, BaseUnusable, context_length
from engine.spec import Peft, Resources
from jobs.errors import NotFound, SpecInvalid, SpecProblem
from jobs.inputs import ADAPTER_PREFIX, inputs_of
from jobs.mixture import datasets_of
from jobs.model import MAX_METADATA, JobSpec, MetadataKey, MetadataValue, Replay

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["openai"], route_class=StrictRoute)

# How long the same body, sent again without an Idempotency-Key, is the same job.
REPEAT_S = 60.0
# What our fields are called here.
NAMES = {
    "base_model": "model",
    "init": "model",
    "dataset": "training_file",
    "validation": "validation_file",
    "name": "suffix",
}
NAMED_IN_TEXTS = ("dataset", "validation", "base_model")
NO_WANDB = "This service sends nothing to others: leave `integrations` out, and read the events."

SMALL_JOB = {
    "model": "luthier-tiny",
    "training_file": "ds_0123456789abcdef01234567",
    "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}},
}
Block = Annotated[
    dict[str, Any] | None,
    Field(description="`hyperparameters`, and whatever else the method takes in POST /jobs"),
]


class MethodBody(Asked):
    """How to learn. The settings are in the block that is called as the type."""

    type: Literal[
        "supervised", "dpo", "reinforcement", "sft", "reward", "ppo", "grpo", "orpo", "kto"
    ]
    supervised: Block = None
    dpo: Block = None
    reinforcement: Block = None
    sft: Block = None
    reward: Block = None
    ppo: Block = None
    grpo: Block = None
    orpo: Block = None
    kto: Block = None


class TuningBody(Asked):
    """What OpenAI's SDK sends, and beside it `peft`, `replay`, `checkpoint_every` and `resources`
    of POST /jobs, by `extra_body`.

    `model` is a base model, or the id of a fine-tuned one that training goes on with. What is left
    open of OpenAI's methods is "auto", and lengths are then as long as the base reads, up to 4,096
    tokens. `seed`, left out, is 0.
    """

    model: str = Field(min_length=1, max_length=256)
    training_file: str = Field(min_length=1, max_length=64)
    validation_file: str | None = Field(None, max_length=64)
    method: MethodBody | None = None
    hyperparameters: dict[str, Any] | None = Field(
        None, description="deprecated: those of a supervised job without a `method`"
    )
    suffix: str | None = Field(None, max_length=64, description="the fine-tuned model's name")
    seed: int | None = Field(None, ge=0, lt=2**31)
    metadata: dict[MetadataKey, MetadataValue] | None = Field(None, max_length=MAX_METADATA)
    integrations: list[dict[str, Any]] | None = Field(None, max_length=5)
    peft: Peft | None = None
    replay: Replay | None = None
    checkpoint_every: int | None = Field(None, ge=1, le=1_000_000)
    resources: Resources | None = None


@router.post("", responses=refusals(404, 429))
async def create_job(
    body: Annotated[TuningBody, Body(examples=[SMALL_JOB])],
    tenant_id: TenantId,
    services: FromServices,
    idempotency_key: IdempotencyKey = None,
) -> FineTuningJob:
    """Queue a job. What could not run or be served is refused now, with every reason.

    The same body again within 60 seconds is the same job, as long as that has not ended: clients
    send it again after a timeout. Another job of the same body takes an Idempotency-Key of its own.
    """
    with _in_the_words_of_tuning(body):
        known("dataset", body.training_file)
        spec = await in_thread(_spec_of, services, tenant_id, body)
        for dataset_id in datasets_of(spec).values():
            known("dataset", dataset_id)
        for adapter_id in inputs_of(spec).values():
            known("adapter", adapter_id)
        served = await jobs.served_to_judges(services, [spec])
        meant = {"tuning": jobs.meaning(spec)}
        idempotency = by_key(idempotency_key, meant) or by_body(meant, REPEAT_S)
        try:
            job = await in_thread(jobs.submit_spec, services, tenant_id, spec, idempotency, served)
        except SpecInvalid as error:
            raise SpecInvalid([*_renamed(body, error.problems)]) from None
    return view(job)


class FileMissing(NotFound):
    """A file that the tenant does not have, and where the request names it."""

    def __init__(self, id: str, param: str) -> None:
        super().__init__("file", id)
        self.args = (f"{self} Upload it by POST /v1/files, and give the id that it gets there.",)
        self.param = param


@contextmanager
def _in_the_words_of_tuning(body: TuningBody) -> Iterator[None]:
    """A dataset is a file here, and an adapter to go on with a model."""
    try:
        yield
    except NotFound as error:
        if error.kind == "dataset":
            raise FileMissing(error.id, _named_in(body, error.id)) from None
        if error.kind == "adapter" and error.id == body.model:
            raise no_model(error.id, "model") from None
        raise


def _named_in(body: TuningBody, dataset_id: str) -> str:
    if dataset_id == body.training_file:
        return "training_file"
    return "validation_file" if dataset_id == body.validation_file else "replay.dataset"


def _spec_of(services: Services, tenant_id: str, body: TuningBody) -> JobSpec:
    """The job as POST /jobs takes it. Raises SpecInvalid, and NotFound for a tuned model."""
    if body.integrations:
        raise SpecInvalid([SpecProblem("integrations", "unsupported", NO_WANDB)])
    asked: dict[str, Any] = {
        "base_model": body.model,
        "dataset": body.training_file,
        "validation": body.validation_file or None,
        "method": _method(body),
        "seed": body.seed or 0,
        "name": body.suffix,
        "metadata": body.metadata or {},
    }
    virtual = getattr(body.peft, "num_virtual_tokens", 0)
    if body.model.startswith(ADAPTER_PREFIX):
        adapter = services.store.adapters.get(tenant_id, known("adapter", body.model))
        asked |= {"base_model": adapter.base_model, "init": adapter.id}
        virtual = adapter.manifest["peft"].get("num_virtual_tokens", 0)
    if body.method is None or body.method.type in OPEN_BY_DEFAULT:
        asked["method"] |= _lengths(services, asked, virtual)
    for name in ("peft", "replay", "checkpoint_every", "resources"):
        if (value := getattr(body, name)) is not None:
            asked[name] = value
    try:
        return JobSpec.model_validate(asked)
    except ValidationError as error:
        raise SpecInvalid([*_renamed(body, problems_of(error))]) from None


def _lengths(services: Services, asked: dict[str, Any], virtual: int) -> dict[str, int]:
    """The lengths that were left open, by what the base reads; none where it cannot be used."""
    try:
        context = context_length(services.bases.find(asked["base_model"]).path)
    except (BaseNotAllowed, BaseUnusable):
        return {}
    return bounded(asked["method"], context - virtual) if context else {}


def _method(body: TuningBody) -> dict[str, Any]:
    method = body.method
    if method is None:
        given = body.hyperparameters
        return ours("supervised", {} if given is None else {"hyperparameters": given}, "")
    if body.hyperparameters is not None:
        text = f"Say them in `method.{method.type}.hyperparameters`; both is one too many."
        raise SpecInvalid([SpecProblem("hyperparameters", "invalid_request", text)])
    others = (name for name in MethodBody.model_fields if name not in ("type", method.type))
    for name in others:
        if getattr(method, name) is not None:
            text = f"This is a job of type {method.type!r}; leave `method.{name}` out."
            raise SpecInvalid([SpecProblem(f"method.{name}", "invalid_request", text)])
    return ours(method.type, getattr(method, method.type) or {}, f"method.{method.type}")


def _renamed(
    body: TuningBody, problems: list[SpecProblem] | Iterator[SpecProblem]
) -> Iterator[SpecProblem]:
    """With their places in this request in place of those of POST /jobs."""
    for problem in problems:
        place = _place(body, problem.param)
        message = problem.message.replace(f"{problem.param}: ", f"{place}: ", 1)
        for name in NAMED_IN_TEXTS:
            message = message.replace(f"`{name}`", f"`{NAMES[name]}`")
        yield SpecProblem(place, problem.code, message)


def _place(body: TuningBody, param: str) -> str:
    first, _, rest = param.partition(".")
    if first != "method":
        return ".".join(filter(None, (NAMES.get(first, first), rest)))
    type = body.method.type if body.method else "supervised"
    given = body.hyperparameters
    if body.method is not None:
        given = (getattr(body.method, type) or {}).get("hyperparameters")
    within = "hyperparameters" if body.method is None else f"method.{type}.hyperparameters"
    for theirs, name in FIELDS.items():
        if rest == name and theirs in (given or ()):
            return f"{within}.{theirs}"
    return ".".join(filter(None, ("method", type, rest)))


@router.get("", responses=refusals(404))
async def list_jobs(
    request: Request,
    tenant_id: TenantId,
    services: FromServices,
    after: After,
    limit: Limit = 20,
    metadata: Annotated[
        str | None,
        Query(description="`null`: jobs without any. `metadata[key]=value`: those that have it."),
    ] = None,
) -> ListOf[FineTuningJob]:
    """The tenant's jobs, newest first."""
    wanted = _wanted(request, metadata)
    board = services.store.jobs
    page = await read(
        services.store, board.trainings, tenant_id, metadata=wanted, after=after, limit=limit
    )
    return ListOf(data=tuple(map(view, page.data)), has_more=page.has_more)


def _wanted(request: Request, whole: str | None) -> dict[str, str] | None:
    """The pairs that jobs have to have; empty: none at all; None: whatever they have."""
    given = [
        (name[len("metadata[") : -1], value)
        for name, value in request.query_params.multi_items()
        if name.startswith("metadata[") and name.endswith("]")
    ]
    pairs = dict(given)
    if whole is not None and (whole != "null" or pairs):
        raise Invalid("Give `metadata[key]=value`, or `metadata=null` alone.", param="metadata")
    if len(pairs) < len(given):
        raise Invalid("A key of metadata is there twice; ask for each once.", param="metadata")
    if len(pairs) > MAX_METADATA:
        said = f"A job has at most {MAX_METADATA} pairs of metadata; ask for fewer."
        raise Invalid(said, param="metadata")
    if any("\0" in text for pair in pairs.items() for text in pair):
        raise Invalid("No metadata has a NUL in it.", param="metadata")
    return pairs if pairs or whole else None


@router.get("/{id}", responses=refusals(404))
async def get_job(id: JobId, tenant_id: TenantId, services: FromServices) -> FineTuningJob:
    """One job; `fine_tuned_model` is what came out, for `model` in other requests."""
    return view(await read(services.store, services.store.jobs.get, tenant_id, id))


@router.post("/{id}/cancel", responses=refusals(404, 409))
async def cancel_job(id: JobId, tenant_id: TenantId, services: FromServices) -> FineTuningJob:
    """Stop a job: at once while it waits, within seconds while it runs."""
    await require_training(services, tenant_id, id)
    return view(await in_thread(services.store.jobs.cancel, tenant_id, id))


@router.post("/{id}/pause", responses=refusals(404, 409))
async def pause_job(id: JobId, tenant_id: TenantId, services: FromServices) -> FineTuningJob:
    """Put a job aside, with a checkpoint where it has begun."""
    await require_training(services, tenant_id, id)
    return view(await in_thread(services.store.jobs.pause, tenant_id, id))


@router.post("/{id}/resume", responses=refusals(404, 409))
async def resume_job(id: JobId, tenant_id: TenantId, services: FromServices) -> FineTuningJob:
    """Queue a paused job again; it goes on from its last checkpoint."""
    await require_training(services, tenant_id, id)
    return view(await in_thread(jobs.resume, services, tenant_id, id))
