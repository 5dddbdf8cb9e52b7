"""A grader's questions as tokens: the same from the API and from a trainer. Torch-free."""

from collections.abc import Sequence
from typing import Any

from engine.completions import NEUTRAL
from engine.errors import EngineError
from engine.graders import Question
from engine.render import Renderer
from engine.rows import Message, Rating


class Unscorable(EngineError):
    """A conversation of which a reward model reads no answer."""


def completion_of(question: Question, renderer: Renderer) -> dict[str, Any]:
    """The body of POST /v1/completions that asks a judge. Raises RenderError."""
    sampling = question.sampling
    seed = {} if sampling.seed is None else {"seed": sampling.seed}
    return {
        "model": question.model,
        "prompt": renderer.prompt_ids(question.messages),
        "max_tokens": sampling.max_completions_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "stop_token_ids": list(renderer.contract.stop_token_ids),
        "ignore_eos": True,  # those of the contract are all there are
        **NEUTRAL,
        **seed,
    }


def answers_a_prompt(roles: Sequence[str]) -> bool:
    """Whether messages of these roles are something that a reward model can score."""
    return len(roles) > 1 and roles[-1] == "assistant"


def how_to_be_scored(model: str) -> str:
    """What to tell the author of a grader whose input a reward model cannot score."""
    return (
        f"{model} is a reward model, which scores the assistant's answer to a prompt; let "
        "`input` have the prompt's messages and end with the answer, of role assistant."
    )


def scored_ids(question: Question, renderer: Renderer) -> tuple[int, ...]:
    """The conversation for a reward model, as answer_ids(). Raises Unscorable and RenderError."""
    if not answers_a_prompt([message.role for message in question.messages]):
        raise Unscorable(how_to_be_scored(question.model))
    *prompt, answer = question.messages
    return answer_ids(renderer, prompt, answer.content)


def answer_ids(renderer: Renderer, prompt: Sequence[Message], answer: str) -> tuple[int, ...]:
    """An answer behind its prompt, as token ids, up to the token that ends the turn.

    The same ids that a reward adapter's training read for a preference row of this prompt and
    answer. Raises RenderError, and Unscorable where the template writes nothing of the answer.
    """
    said = Message(role="assistant", content=answer)
    (rendered,) = renderer.sequences(Rating(prompt=tuple(prompt), completion=(said,), label=True))
    if not any(rendered.loss_mask[1:]):
        raise Unscorable(
            "The base model's chat template writes nothing of this answer, so it has no score."
        )
    return rendered.token_ids[: rendered.end]
