"""What is checked before a job is queued: it must be able to run, and its result to be served."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from adapters.errors import AdapterError
from adapters.geometry import base_geometry
from adapters.tensors import base_shapes
from engine.bases import BaseCatalogue, BaseModel, BaseNotAllowed, BaseUnusable, context_length
from engine.spec import (
    ROWS_OF_METHOD,
    LoraPeft,
    LowRank,
    PrefixTuningPeft,
    PromptTuningPeft,
    QloraPeft,
)
from engine.steps import can_hold_out
from jobs.auto import settle
from jobs.combinations import of_combination, of_grader
from jobs.errors import SpecInvalid, SpecProblem
from jobs.grader_models import grader_reward_problems, judge_problems
from jobs.inputs import INIT, REWARD, inputs_of
from jobs.mixture import datasets_of, mixture_problems
from jobs.model import Dataset, JobSpec, checked_id
from jobs.placement import Placement, of_resources
from jobs.serving import of_serving
from jobs.sources import Source, continued, init_problems, reward_problems, source_of
from jobs.store import Store
from jobs.texts import of_texts

VIRTUAL = PromptTuningPeft | PrefixTuningPeft


@dataclass(frozen=True)
class Admitted:
    """A job that can run, with what it left open settled, and its base."""

    spec: JobSpec
    base: BaseModel


@dataclass(frozen=True)
class Checked:
    """A job, with what it left to the adapter it starts from, and every reason against it."""

    spec: JobSpec
    base: BaseModel | None
    problems: tuple[SpecProblem, ...]


def admit(
    store: Store,
    bases: BaseCatalogue,
    tenant_id: str,
    spec: JobSpec,
    *,
    max_lora_rank: int,
    qlora: bool = False,
    served: Collection[str] | None = None,
    vllm_rank: int | None = None,
    placement: Placement | None = None,
) -> Admitted:
    """The job as it will run.

    qlora: whether the workers have what quantizing a base takes. served: the bases that the
    inference server has loaded, for judges; None: that is not known. vllm_rank: the highest rank of
    the vLLM that generates, None where Luthier's own server does. placement: the classes of
    workers; None: one GPU each.
    Raises NotFound for a dataset or an adapter that the tenant does not have, and SpecInvalid with
    every reason against the job.
    """
    datasets = {f: dataset_named(store, tenant_id, id) for f, id in datasets_of(spec).items()}
    sources = {field: source_named(store, tenant_id, id) for field, id in inputs_of(spec).items()}
    checked = check(
        bases,
        spec,
        datasets,
        sources,
        max_lora_rank=max_lora_rank,
        qlora=qlora,
        served=served,
        vllm_rank=vllm_rank,
        placement=placement,
    )
    if checked.problems or checked.base is None:
        raise SpecInvalid(list(checked.problems))
    return Admitted(checked.spec, checked.base)


def dataset_named(store: Store, tenant_id: str, dataset_id: str) -> Dataset:
    """Raises NotFound."""
    return store.datasets.get(tenant_id, checked_id("dataset", dataset_id))


def source_named(store: Store, tenant_id: str, adapter_id: str) -> Source:
    """Raises NotFound."""
    return source_of(store.adapters.get(tenant_id, checked_id("adapter", adapter_id)))


def check(
    bases: BaseCatalogue,
    spec: JobSpec,
    datasets: Mapping[str, Dataset],
    sources: Mapping[str, Source],
    *,
    max_lora_rank: int,
    qlora: bool,
    served: Collection[str] | None = None,
    vllm_rank: int | None = None,
    placement: Placement | None = None,
) -> Checked:
    """Everything against a job that can be said of the inputs that are known."""
    problems: list[SpecProblem] = []
    base: BaseModel | None = None
    try:
        base = bases.find(spec.base_model)
    except BaseNotAllowed as error:
        problems.append(SpecProblem("base_model", "base_model_not_allowed", str(error)))
    except BaseUnusable as error:
        problems.append(SpecProblem("base_model", error.code, str(error)))
    job = continued(spec, sources[INIT]) if INIT in sources else spec
    if job.method.auto and len(datasets) == len(datasets_of(job)) and base is not None:
        settled = settle(job, datasets, base)
        if isinstance(settled, SpecProblem):
            problems.append(settled)
        else:
            job = settled
    problems += of_texts(job)
    problems += _of_rows(job, datasets)
    problems += mixture_problems(job, datasets)
    problems += _of_evaluations(job)
    problems += of_combination(job)
    problems += of_grader(job)
    problems += _of_rank(job, max_lora_rank)
    problems += _of_start(job)
    problems += _of_prefix(job)
    problems += _of_quantization(job, qlora)
    problems += judge_problems(job, bases, sources, served)
    problems += of_serving(job, vllm_rank)
    problems += of_resources(job, placement or Placement())
    if base is not None:
        problems += _of_length(job, base)
        problems += _of_modules(job, base)
        problems += _of_layers(job, base)
        if REWARD in sources:
            problems += reward_problems(base, sources[REWARD])
        problems += grader_reward_problems(job, base, sources)
        if INIT in sources:
            problems += init_problems(spec, base, sources[INIT])
    return Checked(job, base, tuple(problems))


def _of_rows(spec: JobSpec, datasets: Mapping[str, Dataset]) -> Iterator[SpecProblem]:
    wanted = ROWS_OF_METHOD[spec.method.type]
    for field, dataset in datasets.items():
        if dataset.row_type != wanted:
            yield SpecProblem(
                field,
                "wrong_row_type",
                f"{spec.method.type} learns from {wanted} rows, but dataset {dataset.id} has "
                f"{dataset.row_type} rows.",
            )
        elif not can_hold_out(dataset.rows, spec.method.validation_split):
            yield SpecProblem(
                "method.validation_split",
                "nothing_to_hold_out",
                f"Dataset {dataset.id}: `method.validation_split` of {dataset.rows} rows leaves no "
                "row on one side; change it, or bring more rows.",
            )


def _of_evaluations(spec: JobSpec) -> Iterator[SpecProblem]:
    for name in ("eval_steps", "early_stopping_patience"):
        looks = getattr(spec.method, name, None) is not None
        if looks and not spec.method.validation_split and spec.validation is None:
            yield SpecProblem(
                f"method.{name}",
                "nothing_to_look_at",
                f"`method.{name}` needs rows to look at: a `method.validation_split` above 0, or a "
                "dataset for `validation`.",
            )


def _of_rank(spec: JobSpec, max_lora_rank: int) -> Iterator[SpecProblem]:
    if isinstance(spec.peft, LowRank) and spec.peft.r > max_lora_rank:
        yield SpecProblem(
            "peft.r",
            "rank_too_high",
            f"rank {spec.peft.r} is above this server's limit {max_lora_rank}; lower `peft.r`.",
        )


def _of_start(spec: JobSpec) -> Iterator[SpecProblem]:
    peft = spec.peft
    if isinstance(peft, LoraPeft) and peft.init_lora_weights == "orthogonal" and peft.r % 2:
        yield SpecProblem(
            "peft.r",
            "rank_odd",
            f"An orthogonal start needs an even rank; change `peft.r` from {peft.r}.",
        )


def _of_length(spec: JobSpec, base: BaseModel) -> Iterator[SpecProblem]:
    longest = context_length(base.path)
    if longest is None:
        return
    if spec.method.max_length > longest:
        yield SpecProblem(
            "method.max_length",
            "max_length_too_long",
            f"{base.name} reads at most {longest} tokens; lower `method.max_length` from "
            f"{spec.method.max_length}.",
        )
        return
    rows = spec.method.max_length + getattr(spec.method, "max_completion_length", 0)
    if rows > longest:
        yield SpecProblem(
            "method.max_completion_length",
            "max_length_too_long",
            f"{base.name} reads at most {longest} tokens, prompt and answer together; lower "
            "`method.max_length` or `method.max_completion_length`.",
        )
    elif isinstance(spec.peft, VIRTUAL):
        count = spec.peft.num_virtual_tokens
        if count + rows > longest:
            yield SpecProblem(
                "peft.num_virtual_tokens",
                "too_many_virtual_tokens",
                f"{base.name} reads {longest} tokens, fewer than {count} virtual ones and rows of "
                f"{rows}; lower `peft.num_virtual_tokens` or `method.max_length`.",
            )


def _of_prefix(spec: JobSpec) -> Iterator[SpecProblem]:
    if isinstance(spec.peft, PrefixTuningPeft) and spec.method.gradient_checkpointing:
        yield SpecProblem(
            "method.gradient_checkpointing",
            "gradient_checkpointing_unsupported",
            "prefix_tuning trains keys and values of the attention's cache, which gradient "
            "checkpointing throws away; set `method.gradient_checkpointing` to false.",
        )


def _of_quantization(spec: JobSpec, available: bool) -> Iterator[SpecProblem]:
    if isinstance(spec.peft, QloraPeft) and not available:
        yield SpecProblem(
            "peft.type",
            "quantization_unavailable",
            "The workers of this server have no bitsandbytes, which quantizes the base; use lora, "
            "or ask the operator for it.",
        )


def _of_layers(spec: JobSpec, base: BaseModel) -> Iterator[SpecProblem]:
    """A prefix for a base whose layers do not all take the same one."""
    if not isinstance(spec.peft, PrefixTuningPeft):
        return
    try:
        fits = base_geometry(base.path).attention is not None
    except AdapterError:
        fits = False
    if not fits:
        yield SpecProblem(
            "peft.type",
            "prefix_unsupported_by_base",
            f"The layers of {base.name} do not all have keys and values of one shape, as a prefix "
            "needs them; use prompt_tuning or lora.",
        )


def _of_modules(spec: JobSpec, base: BaseModel) -> Iterator[SpecProblem]:
    """Target modules that the base does not have, where its weights are here to be asked."""
    if not isinstance(spec.peft, LowRank) or spec.peft.target_modules == "all-linear":
        return
    try:
        shapes = base_shapes(base.path)
    except (AdapterError, OSError):
        return  # only its small files are on this machine: the worker will tell
    modules = [name.removesuffix(".weight") for name, shape in shapes.items() if len(shape) == 2]
    for target in spec.peft.target_modules:
        if not any(module == target or module.endswith(f".{target}") for module in modules):
            known = sorted({module.rsplit(".", 1)[-1] for module in modules})
            yield SpecProblem(
                "peft.target_modules",
                "module_not_in_base",
                f"{base.name} has no module {target!r}; name some of {', '.join(known)}, or use "
                '"all-linear".',
            )
