"""Whether the models that a job's grader asks can be asked while it trains, told when it is posted.

A reward adapter is run by the training child, on the job's own base. Every other model is a judge,
which the inference server runs.
"""

from collections.abc import Collection, Iterator, Mapping

from engine.bases import BaseCatalogue, BaseModel, BaseNotAllowed, BaseUnusable
from engine.graders import asking
from engine.graders.label_model import LabelModel
from engine.graders.models import Asking
from engine.judging import answers_a_prompt, how_to_be_scored
from jobs.errors import SpecProblem
from jobs.inputs import grader_of, model_field, names_adapter
from jobs.model import JobSpec
from jobs.sources import Source, of_base, reward_problems

KIND = "reward"


def grader_reward_problems(
    spec: JobSpec, base: BaseModel, sources: Mapping[str, Source]
) -> Iterator[SpecProblem]:
    """Why the reward adapters in the grader cannot score the job's answers."""
    for where, part in asking(grader_of(spec)):
        field = model_field(where)
        source = sources.get(field)
        if source is None or source.kind != KIND:
            continue
        yield from reward_problems(base, source, field)
        if isinstance(part, LabelModel):
            text = f"{part.model} is a reward model and names no labels; take a chat model."
            yield SpecProblem(field, "wrong_adapter_kind", text)
        elif not answers_a_prompt([turn.role for turn in part.input]):
            yield SpecProblem(
                _beside(field, "input"), "reward_input_invalid", how_to_be_scored(part.model)
            )


def judge_problems(
    spec: JobSpec,
    bases: BaseCatalogue,
    sources: Mapping[str, Source],
    served: Collection[str] | None,
) -> Iterator[SpecProblem]:
    """Why the judges in the grader cannot be asked.

    `served` are the bases that the inference server has loaded; None: that is not known.
    """
    for where, part in asking(grader_of(spec)):
        field = model_field(where)
        source = sources.get(field)
        unknown = source is None and names_adapter(part.model)  # told with the other adapters
        if unknown or (source is not None and source.kind == KIND):
            continue
        yield from _of_judge(field, part, source, bases, served)
        if part.sampling_params.temperature > 0:
            yield SpecProblem(
                _beside(field, "sampling_params.temperature"),
                "judge_not_greedy",
                "A judge that gives rewards answers with the likeliest token each time, so that a "
                "job that is resumed gets the same ones; leave `temperature` out.",
            )


def _of_judge(
    field: str,
    part: Asking,
    source: Source | None,
    bases: BaseCatalogue,
    served: Collection[str] | None,
) -> Iterator[SpecProblem]:
    name = part.model if source is None else source.base_model
    if source is None and name not in bases.names:
        text = f"There is no model {name!r}; take a base of GET /models or an adapter's id."
        yield SpecProblem(field, "model_unknown", text)
        return
    try:
        base = bases.find(name)
    except BaseNotAllowed as error:
        yield SpecProblem(field, "base_model_not_allowed", str(error))
        return
    except BaseUnusable as error:
        yield SpecProblem(field, error.code, str(error))
        return
    if source is not None:
        yield from of_base(field, base, source)
    if served is not None and name not in served:
        loaded = ", ".join(sorted(served)) or "none"
        yield SpecProblem(
            field,
            "judge_not_served",
            f"The inference server has loaded {loaded}, not {name!r}, so nothing could answer for "
            "this judge; take one of that base, or ask the operator.",
        )


def _beside(field: str, name: str) -> str:
    """Another field of the grader whose model this is."""
    return f"{field.removesuffix('model')}{name}"
