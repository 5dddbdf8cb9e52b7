"""What is checked before a merge is queued: the adapters are ours, of one base, and can be one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import Field

from adapters.manifest import AdapterKind, Manifest
from engine.bases import BaseCatalogue, BaseModel, BaseNotAllowed, BaseUnusable
from engine.merging import Merge, MergeMethod
from engine.spec import FullPeft, LoraPeft, LowRank, Peft
from jobs.errors import SpecInvalid, SpecProblem
from jobs.merge_ranks import layer_problems, rank_problems, result_rank, targets_of
from jobs.model import Adapter, JobName, MergeSpec, MetadataKey, MetadataValue, checked_id
from jobs.serving import of_merge_into_base
from jobs.sources import Source, source_of
from jobs.store import Store

# Why an adapter of this kind cannot be merged.
REFUSED: dict[AdapterKind, str] = {
    "full": "is a whole model, not matrices beside its base's",
    "prompt_tuning": "is virtual tokens in front, and adds nothing to the base's weights",
    "prefix_tuning": "is virtual tokens in each layer, and adds nothing to the base's weights",
    "reward": "is a reward model, whose head scores and generates nothing",
}


class MergeRequest(Merge):
    """A merge as clients ask for it. The base model is that of the adapters."""

    seed: int = Field(0, ge=0, lt=2**31)
    name: JobName | None = None
    metadata: dict[MetadataKey, MetadataValue] = Field(default_factory=dict, max_length=16)


@dataclass(frozen=True)
class AdmittedMerge:
    """A merge that can run, and the base it is of."""

    spec: MergeSpec
    base: BaseModel


@dataclass(frozen=True)
class Parent:
    """An adapter to merge, with the field that names it."""

    field: str
    source: Source
    manifest: Manifest


def admit_merge(
    store: Store,
    bases: BaseCatalogue,
    tenant_id: str,
    request: MergeRequest,
    *,
    max_lora_rank: int,
    vllm_rank: int | None = None,
) -> AdmittedMerge:
    """The merge as it will run. vllm_rank: as for a job (`admit`).

    Raises NotFound for an adapter that the tenant does not have, and SpecInvalid with every reason
    against the merge.
    """
    ids = [checked_id("adapter", adapter.id) for adapter in request.adapters]
    parents = [_parent(n, store.adapters.get(tenant_id, id)) for n, id in enumerate(ids)]
    base_name = parents[0].source.base_model
    base, problems = _base(bases, base_name)
    for parent in parents:
        problems += _of_kind(parent, into_base=request.into_base)
        problems += _of_base(parent, parents[0], base)
        problems += _of_contract(parent, parents[0])
    problems += of_merge_into_base(request.into_base, vllm_rank)
    if problems or base is None:
        raise SpecInvalid(problems)
    pefts = [parent.source.peft for parent in parents]
    low = [peft for peft in pefts if isinstance(peft, LowRank)]
    if not request.into_base:
        problems += rank_problems(request, low, min(max_lora_rank, vllm_rank or max_lora_rank))
        problems += [] if problems else layer_problems(request, low, base)
    if problems:
        raise SpecInvalid(problems)
    return AdmittedMerge(_spec(request, base_name, low), base)


def _parent(number: int, adapter: Adapter) -> Parent:
    manifest = Manifest.model_validate(adapter.manifest)
    return Parent(f"adapters.{number}.id", source_of(adapter), manifest)


def _base(bases: BaseCatalogue, name: str) -> tuple[BaseModel | None, list[SpecProblem]]:
    try:
        return bases.find(name), []
    except BaseNotAllowed as error:
        return None, [SpecProblem("adapters", "base_model_not_allowed", str(error))]
    except BaseUnusable as error:
        return None, [SpecProblem("adapters", error.code, str(error))]


def _of_kind(parent: Parent, *, into_base: bool) -> Iterator[SpecProblem]:
    source, peft = parent.source, parent.source.peft
    if source.kind in REFUSED:
        text = f"{_subject(source)} {REFUSED[source.kind]}; only LoRA adapters can be merged."
        yield SpecProblem(parent.field, "wrong_adapter_kind", text)
    elif not isinstance(peft, LowRank):
        text = f"{_subject(source)} is of a kind that cannot be merged here; name a LoRA."
        yield SpecProblem(parent.field, "peft_unknown", text)
    elif isinstance(peft, LowRank) and peft.use_dora and not into_base:
        yield SpecProblem(
            parent.field,
            "dora_unsupported",
            f"{_subject(source)} is a DoRA, whose lengths of weights cannot be added up; put it "
            "`into_base` by itself, or merge adapters that were trained without `use_dora`.",
        )


def _of_base(parent: Parent, first: Parent, base: BaseModel | None) -> Iterator[SpecProblem]:
    source = parent.source
    if source.base_model != first.source.base_model:
        yield SpecProblem(
            parent.field,
            "wrong_base_model",
            f"{_subject(source)} belongs to base model {source.base_model!r}, and the first one to "
            f"{first.source.base_model!r}; merge adapters of one base.",
        )
    elif base is not None and source.base_revision != base.revision:
        yield SpecProblem(
            parent.field,
            "base_model_changed",
            f"{_subject(source)} was trained on another revision of {base.name!r} than the server "
            "has now; train it again.",
        )


def _of_contract(parent: Parent, first: Parent) -> Iterator[SpecProblem]:
    ours, theirs = parent.manifest.contract, first.manifest.contract
    names = sorted(
        name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)
    )
    if names:
        yield SpecProblem(
            parent.field,
            "contract_differs",
            f"{_subject(parent.source)} was trained with another render contract than the first "
            f"one ({', '.join(names)}), so they would not read the same prompt alike; merge "
            "adapters that share it.",
        )


def _spec(request: MergeRequest, base_name: str, parents: Sequence[LowRank]) -> MergeSpec:
    method = {name: getattr(request, name) for name in Merge.model_fields}
    return MergeSpec(
        base_model=base_name,
        method=MergeMethod.model_validate(method),
        peft=_result(request, parents),
        seed=request.seed,
        name=request.name,
        metadata=request.metadata,
    )


def _result(request: MergeRequest, parents: Sequence[LowRank]) -> Peft:
    """What comes out: a model of its own, or a LoRA whose matrices have all factors in them."""
    if request.into_base:
        return FullPeft()
    rank = result_rank(request, parents)
    return LoraPeft(r=rank, lora_alpha=rank, target_modules=targets_of(parents))


def _subject(source: Source) -> str:
    return source.name[0].upper() + source.name[1:]
