"""Graders over HTTP, in the shapes of OpenAI's alpha: check one, and run it on a sample."""

import time
from typing import Any

from fastapi import APIRouter, Request
from pydantic import ConfigDict, Field
from pydantic.config import JsonDict

from api.answering import unless_gone
from api.auth import TenantId
from api.bodies import StrictRoute
from api.calls import in_thread
from api.envelope import Body, Wire, refusals
from api.judging import Judged, judged, together
from api.services import FromServices
from engine.completions import Usage
from engine.graders import Grade, Grader, Sample, check, grade, questions
from jobs.errors import SpecInvalid, SpecProblem

router = APIRouter(prefix="/graders", tags=["graders"], route_class=StrictRoute)

CHECK: JsonDict = {
    "type": "string_check",
    "name": "right answer",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "operation": "eq",
}


class ValidateBody(Body):
    """A grader to look at."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"grader": CHECK}]})

    grader: Grader


class ValidGrader(Wire):
    """A sound grader, with every default said."""

    grader: Grader


class RunBody(Body):
    """A grader, what a model wrote, and the row that it answers."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"grader": CHECK, "model_sample": "Paris", "item": {"answer": "Paris"}}]
        }
    )

    grader: Grader
    model_sample: str = Field(description="{{ sample.output_text }} in templates")
    item: dict[str, Any] | None = Field(None, description="{{ item }} in templates")


class RunErrors(Wire):
    """Which kinds of trouble there were, by OpenAI's names; `details` says each and where."""

    formula_parse_error: bool = False
    invalid_variable_error: bool = False
    model_grader_parse_error: bool = False
    model_grader_refusal_error: bool = False
    model_grader_server_error: bool = False
    model_grader_server_error_details: str | None = None
    other_error: bool = False
    python_grader_runtime_error: bool = False
    python_grader_runtime_error_details: str | None = None
    python_grader_server_error: bool = False
    python_grader_server_error_type: str | None = None
    sample_parse_error: bool = False
    truncated_observation_error: bool = False
    unresponsive_reward_error: bool = False
    details: tuple[str, ...] = ()


class RunMetadata(Wire):
    """How it went. `execution_time` is in seconds."""

    name: str
    type: str
    errors: RunErrors
    execution_time: float
    scores: dict[str, float]
    token_usage: Usage | None
    sampled_model_name: str | None


class RunResult(Wire):
    """The reward, and those of a multi grader's parts by their names."""

    reward: float
    passed: bool | None
    sub_rewards: dict[str, float]
    metadata: RunMetadata
    model_grader_token_usage_per_model: dict[str, Usage]


@router.post("/validate", responses=refusals())
async def validate(body: ValidateBody, tenant_id: TenantId, services: FromServices) -> ValidGrader:
    """Look at a grader without a sample. Everything wrong with it is told at once."""
    async with services.slow:
        await in_thread(_refuse_problems, body.grader)
    return ValidGrader(grader=body.grader)


@router.post("/run", responses=refusals(404, 429, 502))
async def run(
    body: RunBody, request: Request, tenant_id: TenantId, services: FromServices
) -> RunResult:
    """Grade one sample. What kept it from being graded is in `metadata.errors`."""
    started = time.perf_counter()
    sample, item = Sample(output_text=body.model_sample), body.item or {}
    async with services.slow:
        await in_thread(_refuse_problems, body.grader)
        asked = await in_thread(questions, body.grader, sample, item)
    said = await unless_gone(request, judged(services, tenant_id, asked))
    async with services.slow:
        found = await in_thread(grade, body.grader, sample, item, said.answers)
    return _result(body.grader, found, said, time.perf_counter() - started)


def _refuse_problems(grader: Grader) -> None:
    """Raises SpecInvalid."""
    problems = check(grader)
    if problems:
        raise SpecInvalid([SpecProblem(f"grader.{p.field}", p.code, p.message) for p in problems])


def _result(grader: Grader, found: Grade, said: Judged, seconds: float) -> RunResult:
    models = sorted(said.usage)
    return RunResult(
        reward=found.score,
        passed=found.passed,
        sub_rewards=found.sub_scores,
        metadata=RunMetadata(
            name=grader.name,
            type=grader.type,
            errors=_errors(found),
            execution_time=seconds,
            scores=found.sub_scores or {grader.name or grader.type: found.score},
            token_usage=together(said.usage.values()) if models else None,
            sampled_model_name=models[0] if len(models) == 1 else None,
        ),
        model_grader_token_usage_per_model=dict(said.usage),
    )


def _errors(found: Grade) -> RunErrors:
    details = tuple(
        f"{fault.where}: {fault.message}" if fault.where else fault.message
        for fault in found.faults
    )
    told = dict.fromkeys((fault.kind for fault in found.faults), True)
    return RunErrors.model_validate({**told, "details": details})
