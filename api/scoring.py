"""Answers to a prompt as a reward adapter reads them: the token ids of its training."""

from collections.abc import Sequence

from api.errors import CannotScore, Invalid, NothingScores
from api.rendering import base_named, contract_of, renderer_of
from api.services import Services
from engine.judging import Unscorable, answer_ids
from engine.render import Renderer
from engine.rows import Message
from jobs.model import Adapter

REWARD = "reward"
MAX_TOKENS = (
    524_288  # of all answers together, each with its prompt: the server's bodies are capped
)

Input = tuple[int, ...]


def check_scores(adapter: Adapter) -> None:
    """Raises CannotScore for an adapter of another kind."""
    if adapter.kind != REWARD:
        raise CannotScore(
            f"Adapter {adapter.id} is of kind {adapter.kind!r}: it generates and has no head to "
            "score with. Name one that a job with method `reward` made.",
            param="adapter_id",
        )


def inputs_of(
    services: Services, adapter: Adapter, prompt: Sequence[Message], answers: Sequence[str]
) -> list[Input]:
    """Each answer behind the prompt, as token ids, up to the token that ends the turn.

    The same ids that the adapter's training read for a preference row of this prompt and answer.
    Raises NothingScores, Invalid, RenderError, BaseNotAllowed and BaseUnusable.
    """
    if services.settings.generator == "vllm":
        raise NothingScores(
            "This service generates through vLLM, which has no scores of Luthier's reward models; "
            "score with a service whose generator is Luthier's own.",
            param="adapter_id",
        )
    renderer = renderer_of(base_named(services.bases, adapter.base_model), contract_of(adapter))
    found: list[Input] = []
    tokens = 0
    for number, answer in enumerate(answers):
        found.append(_input(renderer, prompt, answer, f"completions.{number}"))
        tokens += len(found[-1])
        if tokens > MAX_TOKENS:
            raise Invalid(
                f"These answers, each with the prompt before it, are more than {MAX_TOKENS:,} "
                "tokens, the limit of one request; send fewer at once.",
                param="completions",
            )
    return found


def _input(renderer: Renderer, prompt: Sequence[Message], answer: str, param: str) -> Input:
    try:
        return answer_ids(renderer, prompt, answer)
    except Unscorable as error:
        raise Invalid(str(error), param=param) from error
