"""What a job starts from, and whether it fits: the adapter it goes on with, its reward model."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from adapters.manifest import AdapterKind, Manifest
from engine.bases import BaseModel
from engine.spec import KIND_OF_PEFT, Peft, PrefixTuningPeft
from jobs.combinations import HEAD
from jobs.errors import SpecProblem
from jobs.inputs import INIT, REWARD
from jobs.model import Adapter, JobSpec

PEFT: TypeAdapter[Peft] = TypeAdapter(Peft)
# What an adapter does not keep: a job that goes on with it may choose anew.
CHOSEN_ANEW = frozenset({"lora_dropout"})
# What a reward model can start from: adapters that can carry its head.
HEADED = frozenset({"lora", "full", "reward"})
# Reward models that can share the base with what they score.
SHARING = frozenset({"lora", "qlora"})


@dataclass(frozen=True)
class Source:
    """An adapter to start from: a published one, or the one that a stage will make.

    `peft` is that of a job that goes on with it, and None where no job could have made it.
    """

    name: str
    kind: AdapterKind
    base_model: str
    base_revision: str
    peft: Peft | None


def source_of(adapter: Adapter) -> Source:
    manifest = Manifest.model_validate(adapter.manifest)
    try:
        peft = going_on(PEFT.validate_python(manifest.peft))
    except ValidationError:
        peft = None
    return Source(
        name=f"adapter {adapter.id}",
        kind=adapter.kind,
        base_model=manifest.base_model,
        base_revision=manifest.base_revision,
        peft=peft,
    )


def going_on(peft: Peft) -> Peft:
    """What is left to go on with of what was trained: of a projected prefix, the prefix."""
    if isinstance(peft, PrefixTuningPeft):
        return PrefixTuningPeft(num_virtual_tokens=peft.num_virtual_tokens)
    return peft


def kind_of(spec: JobSpec) -> AdapterKind:
    """The kind of adapter that comes out of a job."""
    return "reward" if spec.method.type == "reward" else KIND_OF_PEFT[spec.peft.type]


def continued(spec: JobSpec, source: Source) -> JobSpec:
    """The job with its source's `peft`, but for what training chooses anew."""
    if source.peft is None or _lacks_head(spec, source):
        return spec
    anew = _given(spec).keys() & CHOSEN_ANEW & type(source.peft).model_fields.keys()
    peft = source.peft.model_copy(update={name: getattr(spec.peft, name) for name in anew})
    return spec.model_copy(update={"peft": peft})


def init_problems(spec: JobSpec, base: BaseModel, source: Source) -> Iterator[SpecProblem]:
    """Why the job cannot go on with this adapter."""
    method = spec.method.type
    if _lacks_head(spec, source):
        yield SpecProblem(
            INIT,
            "wrong_adapter_kind",
            f"{_subject(source)} is of kind {source.kind}, and {HEAD}; name an adapter of kind "
            "lora, full or reward, or leave `init` out.",
        )
        return
    if method != "reward" and source.kind == "reward":
        yield SpecProblem(
            INIT,
            "wrong_adapter_kind",
            f"{_subject(source)} is a reward model, which {method} cannot go on with; name one "
            "that generates, or leave `init` out.",
        )
    yield from of_base(INIT, base, source)
    if source.peft is None:
        yield SpecProblem(
            INIT,
            "peft_unknown",
            f"{_subject(source)} is of a kind that no job here can go on with; name another one.",
        )
        return
    for name, value in _given(spec).items():
        theirs = getattr(source.peft, name, None)
        if name not in CHOSEN_ANEW and not _same(value, theirs):
            yield SpecProblem(
                f"peft.{name}",
                "peft_differs",
                f"{_subject(source)} has `peft.{name}` {_shown(theirs)}, not {_shown(value)}; "
                "leave `peft` out to go on with what it has.",
            )
            if name == "type":
                return  # of another kind, its other fields mean nothing here


def reward_problems(base: BaseModel, source: Source, field: str = REWARD) -> Iterator[SpecProblem]:
    """Why this adapter, which the field names, cannot score the job's answers."""
    if source.kind != "reward":
        yield SpecProblem(
            field,
            "wrong_adapter_kind",
            f"{_subject(source)} is no reward model; name one that method `reward` made.",
        )
    elif source.peft is None or source.peft.type not in SHARING:
        yield SpecProblem(
            field,
            "reward_model_unusable",
            f"{_subject(source)} is no LoRA, so it cannot share the base with what it scores; "
            "train it with `peft` of type lora.",
        )
    yield from of_base(field, base, source)


def _lacks_head(spec: JobSpec, source: Source) -> bool:
    """Whether a reward model is to start from what cannot carry its head."""
    return spec.method.type == "reward" and source.kind not in HEADED


def of_base(param: str, base: BaseModel, source: Source) -> Iterator[SpecProblem]:
    """Why an adapter does not go with this base."""
    if source.base_model != base.name:
        yield SpecProblem(
            param,
            "wrong_base_model",
            f"{_subject(source)} belongs to base model {source.base_model!r}, not to "
            f"{base.name!r}; use the same `base_model`.",
        )
    elif source.base_revision != base.revision:
        yield SpecProblem(
            param,
            "base_model_changed",
            f"{_subject(source)} was trained on another revision of {base.name!r} than the server "
            "has now; train it again.",
        )


def _given(spec: JobSpec) -> dict[str, Any]:
    """What the client said of `peft`, its type first; empty where it left that to the adapter."""
    if "peft" not in spec.model_fields_set:
        return {}
    others = sorted(spec.peft.model_fields_set - {"type"})
    return {name: getattr(spec.peft, name) for name in ["type", *others]}


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, tuple) and isinstance(theirs, tuple):
        return sorted(ours) == sorted(theirs)
    return bool(ours == theirs)


def _shown(value: Any) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def _subject(source: Source) -> str:
    return source.name[0].upper() + source.name[1:]
