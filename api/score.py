"""POST /score: what a reward adapter of the tenant makes of several answers to one prompt."""

from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import AfterValidator, ConfigDict, Field, field_validator, model_validator
from pydantic.config import JsonDict

from api.answering import unless_gone
from api.auth import TenantId
from api.bodies import StrictRoute
from api.calls import in_thread
from api.completions import Scores
from api.completions import score as ask_scores
from api.envelope import Body, Wire, refusals
from api.errors import GeneratorRefused
from api.paging import known
from api.scoring import Input, check_scores, inputs_of
from api.services import FromServices, Services
from api.spending import spending
from engine.completions import Usage
from engine.rows import Message

router = APIRouter(tags=["score"], route_class=StrictRoute)

MAX_COMPLETIONS = 64
OUR_FIELDS = {"model": "adapter_id", "inputs": "completions"}
COMPARE: JsonDict = {
    "adapter_id": "ad_0123456789abcdef01234567",
    "prompt": "How do I keep bread fresh?",
    "completions": ["In a paper bag, cut side down.", "no idea"],
}


def _written(answer: str) -> str:
    if not answer.strip():  # no row has one either
        raise ValueError("the answer is blank; write it, or leave it out")
    return answer


class ScoreBody(Body):
    """A prompt, and the answers to it that are to be compared."""

    model_config = ConfigDict(json_schema_extra={"examples": [COMPARE]})

    adapter_id: str = Field(max_length=64, description="an adapter of kind `reward`")
    prompt: str | None = Field(
        None, min_length=1, description="one message of the user, as in a preference row"
    )
    messages: tuple[Message, ...] | None = Field(
        None, max_length=512, description="the conversation before the answer"
    )
    completions: tuple[Annotated[str, AfterValidator(_written)], ...] = Field(
        min_length=1, max_length=MAX_COMPLETIONS, description="what the assistant could answer"
    )

    @field_validator("messages")
    @classmethod
    def _waits_for_an_answer(
        cls, messages: tuple[Message, ...] | None
    ) -> tuple[Message, ...] | None:
        if messages == ():
            raise ValueError("there is no message; give at least one")
        if messages and messages[-1].role == "assistant":
            raise ValueError("the last message is the assistant's; answers go into `completions`")
        return messages

    @model_validator(mode="after")
    def _says_one_thing(self) -> "ScoreBody":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give exactly one of `prompt` and `messages`")
        return self

    @property
    def conversation(self) -> tuple[Message, ...]:
        """The messages before the answer."""
        if self.messages is not None:
            return self.messages
        assert self.prompt is not None, "the body has one of the two"
        return (Message(role="user", content=self.prompt),)


class CompletionScore(Wire):
    """The scalar of one answer; higher is better, and only differences mean something."""

    index: int
    score: float


class ScoreAnswer(Wire):
    """The scores in the order of `completions`."""

    object: Literal["score"] = "score"
    adapter_id: str
    data: tuple[CompletionScore, ...]
    usage: Usage


@router.post("/score", responses=refusals(404, 429, 502))
async def score(
    body: ScoreBody, request: Request, tenant_id: TenantId, services: FromServices
) -> ScoreAnswer:
    """Score answers by a reward model, rendered as it was trained."""
    async with services.slow:
        inputs = await in_thread(_inputs, services, tenant_id, body)
    async with spending(services.store, tenant_id, sum(map(len, inputs))) as tab:
        found = await unless_gone(request, _scored(services, body.adapter_id, inputs))
        tab.settle(found.usage)
    return ScoreAnswer(
        adapter_id=body.adapter_id,
        data=tuple(CompletionScore(index=each.index, score=each.score) for each in found.data),
        usage=found.usage,
    )


async def _scored(services: Services, adapter_id: str, inputs: Sequence[Input]) -> Scores:
    """The inference server's answer; what it refuses is told at our own fields."""
    try:
        return await ask_scores(services.http, adapter_id, inputs)
    except GeneratorRefused as refusal:
        field, dot, number = (refusal.param or "").partition(".")
        param = OUR_FIELDS.get(field, field) + dot + number
        told = refusal.body.model_copy(update={"param": param or None})
        raise GeneratorRefused(refusal.status, told) from refusal


def _inputs(services: Services, tenant_id: str, body: ScoreBody) -> list[Input]:
    """Raises NotFound, CannotScore and what `inputs_of` does."""
    adapter = services.store.adapters.get(tenant_id, known("adapter", body.adapter_id))
    check_scores(adapter)
    return inputs_of(services, adapter, body.conversation, body.completions)
