"""The body of POST /v1/score, a protocol of Luthier's own: prompts with their answers, as ids."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from engine.infer.wire import TokenId

MAX_INPUTS = 256


class ScoreBody(BaseModel):
    """What a client may ask: each input is a prompt and the answer to score behind it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    model: str
    inputs: Annotated[
        list[Annotated[list[TokenId], Field(min_length=1)]],
        Field(min_length=1, max_length=MAX_INPUTS),
    ]
