"""The seam between HTTP and the model: sequences go in, what they generate comes out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from engine.infer.grammar import Grammar
from engine.infer.head import ScoreHead
from engine.infer.lora import LoraWeights
from engine.infer.model import ServedModel
from engine.infer.sampling import GREEDY, Sampling, Score
from engine.infer.virtual_tokens import VirtualTokens


@dataclass(frozen=True, slots=True)
class SequenceRequest:
    """One prompt to continue by at most max_tokens; with 0 it is only scored."""

    model: ServedModel
    lora: LoraWeights | None
    prompt_ids: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = GREEDY
    index: int = 0  # among the choices of one request: gives each its own randomness
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    logprobs: int | None = None  # how many alternatives; None: no log-probs
    score_prompt: bool = False
    virtual_tokens: VirtualTokens | None = None
    ahead: bool = False  # a probe: does not wait behind the clients' sequences
    tenant: str = ""  # whose it is: they take turns
    scope: str | None = None  # who may reuse what the prompt begins with; None: nobody
    grammar: Grammar | None = None  # what the answer is kept to


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Prompts with their answers, to be scored by a head above the model; at least one."""

    model: ServedModel
    lora: LoraWeights | None
    head: ScoreHead
    inputs: tuple[tuple[int, ...], ...]
    ahead: bool = False  # a probe: does not wait behind the clients' sequences


@dataclass(frozen=True, slots=True)
class Finish:
    """Why a sequence ended. stop_reason: the stop string or token id of the request that hit."""

    reason: Literal["stop", "length"]
    stop_reason: int | str | None = None


@dataclass(frozen=True, slots=True)
class PromptReused:
    """So many of the prompt's tokens were not computed anew: an earlier one began with them."""

    tokens: int


@dataclass(frozen=True, slots=True)
class PromptScored:
    """The log-probs of the prompt's tokens; the first has none."""

    scores: tuple[Score | None, ...]


@dataclass(frozen=True, slots=True)
class Output:
    """What one step added. `offset` is where the token's text starts in the whole text.

    The text lags behind the tokens while a character or a stop string is incomplete. token_id is
    None when max_tokens was 0.
    """

    text: str
    token_id: int | None
    offset: int
    score: Score | None
    finish: Finish | None


@dataclass(frozen=True, slots=True)
class Scored:
    """The scalars of a ScoreRequest, one for each input; finite."""

    scores: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Failed:
    """The sequence ended with an error."""

    error: Exception


Event = PromptReused | PromptScored | Output | Scored | Failed
Sink = Callable[[Event], None]


class Ticket:
    """A sequence that was handed in. `cancel` takes effect within one step; any thread may."""

    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Generator(Protocol):
    """Runs sequences. `sink` is called from the generator's thread, in order, and must not block.

    The last event of a sequence that is not cancelled is Failed, Scored or an Output with `finish`.
    """

    def submit(self, request: SequenceRequest | ScoreRequest, sink: Sink) -> Ticket: ...
