"""The adapters a job starts from: which of its fields name them, by id or as another stage's."""

from collections.abc import Mapping

from engine.graders import Grader, asking, with_models
from jobs.model import JobSpec, MergeSpec, Work

INIT, REWARD = "init", "method.reward_model"
GRADER = "method.grader"
ADAPTER_PREFIX = "ad_"  # of adapters' ids, where a base model could be named as well
MARK = "@"  # `@sft`: the adapter that stage `sft` of the same pipeline makes


def inputs_of(spec: Work) -> dict[str, str]:
    """What the job names, by the field that names it."""
    if isinstance(spec, MergeSpec):
        return {f"adapters.{i}.id": adapter.id for i, adapter in enumerate(spec.method.adapters)}
    named = {INIT: spec.init, REWARD: getattr(spec.method, "reward_model", None)}
    asked = {model_field(where): part.model for where, part in asking(grader_of(spec))}
    adapters = {field: model for field, model in asked.items() if names_adapter(model)}
    return {field: source for field, source in named.items() if source is not None} | adapters


def with_inputs(spec: JobSpec, inputs: Mapping[str, str]) -> JobSpec:
    """The job with these adapter ids in the fields that name adapters."""
    changed: dict[str, object] = {}
    method: dict[str, object] = {}
    if INIT in inputs:
        changed["init"] = inputs[INIT]
    if REWARD in inputs:
        method["reward_model"] = inputs[REWARD]
    if (grader := grader_of(spec)) is not None:
        places = [where for where, _ in asking(grader)]
        models = {where: inputs[f] for where in places if (f := model_field(where)) in inputs}
        method["grader"] = with_models(grader, models)
    if method:
        changed["method"] = spec.method.model_copy(update=method)
    return spec.model_copy(update=changed)


def grader_of(spec: Work) -> Grader | None:
    """The grader that gives the job's reward, where one does."""
    grader: Grader | None = getattr(spec.method, "grader", None)
    return grader


def model_field(where: str) -> str:
    """The field of a grader's model, by the grader's place: "" or "graders.a"."""
    return ".".join(filter(None, (GRADER, where, "model")))


def names_adapter(model: str) -> bool:
    """Whether a grader's model is an adapter, one that is there or that a stage makes."""
    return model.startswith((ADAPTER_PREFIX, MARK))


def stage_of(source: str) -> str | None:
    """The stage that `@stage` names; None for an adapter's id."""
    return source.removeprefix(MARK) if source.startswith(MARK) else None
