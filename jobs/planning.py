"""A pipeline checked whole before any of it starts: its references, then each stage as a job."""

from collections.abc import Collection
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter

from engine.bases import BaseCatalogue
from jobs.admission import Checked, check, dataset_named, source_named
from jobs.errors import NotFound, SpecInvalid, SpecProblem
from jobs.inputs import inputs_of, stage_of
from jobs.mixture import datasets_of
from jobs.model import Dataset, JobSpec
from jobs.placement import Placement
from jobs.sources import Source, going_on, kind_of
from jobs.stages import PipelineSpec, PlannedStage
from jobs.store import Store

# By stage, the stages it needs and the field that names each.
Needs = dict[str, dict[str, str]]


def plan(
    store: Store,
    bases: BaseCatalogue,
    tenant_id: str,
    spec: PipelineSpec,
    *,
    max_lora_rank: int,
    qlora: bool = False,
    served: Collection[str] | None = None,
    vllm_rank: int | None = None,
    placement: Placement | None = None,
) -> tuple[PlannedStage, ...]:
    """The stages in the order they were posted in.

    Raises SpecInvalid with every reason against the pipeline, each with its field, such as
    `stages.ppo.init`; what the tenant does not have is one of them.
    """
    needs, problems = _references(spec)
    order = _in_order(needs, problems)
    sources: dict[str, Source] = {}
    planned: dict[str, PlannedStage] = {}
    for name in order:
        stage = spec.stages[name]
        datasets, given = _inputs(store, tenant_id, name, stage, sources, problems)
        checked = check(
            bases,
            stage,
            datasets,
            given,
            max_lora_rank=max_lora_rank,
            qlora=qlora,
            served=served,
            vllm_rank=vllm_rank,
            placement=(placement or Placement()).alone(),  # all stages are in one queue
        )
        problems += [_at(name, problem) for problem in checked.problems]
        if checked.base is not None:
            sources[name] = _result(name, checked)
            planned[name] = PlannedStage(name, checked.spec, checked.base.revision)
    if problems:
        raise SpecInvalid(problems)
    return tuple(planned[name] for name in spec.stages)


def _references(spec: PipelineSpec) -> tuple[Needs, list[SpecProblem]]:
    """Which stages need which, and what is wrong with how they name each other."""
    needs: Needs = {name: {} for name in spec.stages}
    problems = []
    for name, stage in spec.stages.items():
        for field, source in inputs_of(stage).items():
            needed = stage_of(source)
            if needed is None:
                continue
            if needed == name:
                text = f"Stage {name!r} cannot start from its own result; name another stage."
                problems.append(_at(name, SpecProblem(field, "self_reference", text)))
            elif needed not in spec.stages:
                known = ", ".join(spec.stages)
                text = f"There is no stage {needed!r}; the stages are {known}."
                problems.append(_at(name, SpecProblem(field, "unknown_stage", text)))
            else:
                needs[name][needed] = field
    return needs, problems


def _in_order(needs: Needs, problems: list[SpecProblem]) -> tuple[str, ...]:
    """Every stage after those it needs. A cycle is a problem, and is cut to find the next one."""
    while True:
        try:
            return tuple(TopologicalSorter(needs).static_order())
        except CycleError as error:
            needed, name = error.args[1][:2]
            field = needs[name].pop(needed)
            circle = " -> ".join(reversed(error.args[1]))
            text = f"These stages wait for each other: {circle}; let one start from something else."
            problems.append(_at(name, SpecProblem(field, "cycle", text)))


def _inputs(
    store: Store,
    tenant_id: str,
    name: str,
    stage: JobSpec,
    made: dict[str, Source],
    problems: list[SpecProblem],
) -> tuple[dict[str, Dataset], dict[str, Source]]:
    """What a stage starts from, as far as it is there; the rest is a problem."""
    datasets: dict[str, Dataset] = {}
    for field, dataset_id in datasets_of(stage).items():
        try:
            datasets[field] = dataset_named(store, tenant_id, dataset_id)
        except NotFound as error:
            problems.append(_at(name, SpecProblem(field, "not_found", str(error))))
    found: dict[str, Source] = {}
    for field, source in inputs_of(stage).items():
        needed = stage_of(source)
        if needed is not None:
            found |= {field: made[needed]} if needed in made and needed != name else {}
            continue
        try:
            found[field] = source_named(store, tenant_id, source)
        except NotFound as error:
            problems.append(_at(name, SpecProblem(field, "not_found", str(error))))
    return datasets, found


def _result(name: str, checked: Checked) -> Source:
    """The adapter that a stage will make."""
    assert checked.base is not None
    return Source(
        name=f"stage {name!r}",
        kind=kind_of(checked.spec),
        base_model=checked.base.name,
        base_revision=checked.base.revision,
        peft=going_on(checked.spec.peft),
    )


def _at(stage: str, problem: SpecProblem) -> SpecProblem:
    return replace(problem, param=f"stages.{stage}.{problem.param}")
