"""The seam to models that judge: what is asked of them, and what they say."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Protocol

from pydantic import AfterValidator, BeforeValidator, Field

from engine.frozen import Asked, Spec
from engine.graders.grades import GradingFault
from engine.graders.limits import MAX_TURNS
from engine.graders.templates import Template
from engine.rows import Message


def _plain(content: Any) -> Any:
    """OpenAI's {"type": "input_text", "text"} as the text that it is."""
    if isinstance(content, Mapping) and set(content) == {"type", "text"}:
        return content["text"] if content["type"] in ("input_text", "output_text") else content
    return content


class Turn(Asked):
    """A message to a judge, with a template as content. A developer speaks as the system does."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[Template, BeforeValidator(_plain)]


def _some(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    # Not min_length, which counts the sound ones and so complains twice of a bad one.
    if not turns:
        raise ValueError("there is no message; give at least one")
    return turns


Turns = Annotated[tuple[Turn, ...], Field(max_length=MAX_TURNS), AfterValidator(_some)]


class Sampling(Asked):
    """How a judge samples. The default is the likeliest token each time, so that grades repeat."""

    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    max_completions_tokens: int = Field(256, ge=1, le=4096, description="OpenAI's spelling")


class Question(Spec):
    """What one grader asks. `where` tells it from the others: "" or "graders.a"."""

    where: str
    model: str
    messages: tuple[Message, ...]
    sampling: Sampling


class Verdict(Spec):
    """What came back: a judge's text, or a reward model's scalar for the conversation."""

    text: str | None = None
    score: float | None = None


class Judge(Protocol):
    """Whoever can ask models: the API over HTTP, a trainer in its own process."""

    def answer(self, question: Question) -> Verdict:
        """Raises GradingFault (model_grader_server_error) when no answer is to be had."""
        ...


class Answers:
    """A judge whose answers, or why there is none, are there already, by their question's place."""

    def __init__(self, verdicts: Mapping[str, Verdict | GradingFault]) -> None:
        self._verdicts = verdicts

    def answer(self, question: Question) -> Verdict:
        """Raises GradingFault where that is what there is."""
        said = self._verdicts[question.where]
        if isinstance(said, GradingFault):
            raise said
        return said
