"""/v1/fine_tuning/alpha/graders: the graders of /graders, where OpenAI's SDK looks for them."""

from fastapi import APIRouter, Request

from api import graders
from api.auth import TenantId
from api.bodies import StrictRoute
from api.envelope import Wire, refusals
from api.graders import RunBody, RunErrors, ValidateBody, ValidGrader
from api.services import FromServices
from engine.completions import Usage

router = APIRouter(prefix="/v1/fine_tuning/alpha/graders", tags=["openai"], route_class=StrictRoute)


class RunMetadata(Wire):
    """How it went. `execution_time` is in seconds, `token_usage` that of all models together."""

    name: str
    type: str
    errors: RunErrors
    execution_time: float
    scores: dict[str, float]
    token_usage: int | None
    sampled_model_name: str | None


class RunResult(Wire):
    """The reward, and those of a multi grader's parts by their names."""

    reward: float
    sub_rewards: dict[str, float]
    metadata: RunMetadata
    model_grader_token_usage_per_model: dict[str, Usage]


@router.post("/validate", responses=refusals())
async def validate(body: ValidateBody, tenant_id: TenantId, services: FromServices) -> ValidGrader:
    """Look at a grader without a sample. Everything wrong with it is told at once."""
    return await graders.validate(body, tenant_id, services)


@router.post("/run", responses=refusals(404, 429, 502))
async def run(
    body: RunBody, request: Request, tenant_id: TenantId, services: FromServices
) -> RunResult:
    """Grade one sample. What kept it from being graded is in `metadata.errors`."""
    found = await graders.run(body, request, tenant_id, services)
    usage = found.metadata.token_usage
    return RunResult(
        reward=found.reward,
        sub_rewards=found.sub_rewards,
        metadata=RunMetadata(
            **found.metadata.model_dump(exclude={"token_usage", "errors"}),
            errors=found.metadata.errors,
            token_usage=usage.total_tokens if usage else None,
        ),
        model_grader_token_usage_per_model=found.model_grader_token_usage_per_model,
    )
