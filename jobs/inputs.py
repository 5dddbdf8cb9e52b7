"""The adapters a job starts from: which of its fields name them, by id or as another stage's."""

from collections.abc import Mapping

from jobs.model import JobSpec, MergeSpec, Work

INIT, REWARD = "init", "method.reward_model"
MARK = "@"  # `@sft`: the adapter that stage `sft` of the same pipeline makes


def inputs_of(spec: Work) -> dict[str, str]:
    """What the job names, by the field that names it."""
    if isinstance(spec, MergeSpec):
        return {f"adapters.{i}.id": adapter.id for i, adapter in enumerate(spec.method.adapters)}
    named = {INIT: spec.init, REWARD: getattr(spec.method, "reward_model", None)}
    return {field: source for field, source in named.items() if source is not None}


def with_inputs(spec: JobSpec, inputs: Mapping[str, str]) -> JobSpec:
    """The job with these adapter ids in the fields that name adapters."""
    changed: dict[str, object] = {}
    if INIT in inputs:
        changed["init"] = inputs[INIT]
    if REWARD in inputs:
        changed["method"] = spec.method.model_copy(update={"reward_model": inputs[REWARD]})
    return spec.model_copy(update=changed)


def stage_of(source: str) -> str | None:
    """The stage that `@stage` names; None for an adapter's id."""
    return source.removeprefix(MARK) if source.startswith(MARK) else None
