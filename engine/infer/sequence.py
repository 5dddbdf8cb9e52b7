"""One sequence on its way through a model: what it is fed, its tokens and the text they make."""

import time

import torch
from tokenizers import Tokenizer

from engine.infer.detokenizer import Detokenizer, StopStrings
from engine.infer.errors import GenerationFailed
from engine.infer.generator import (
    Failed,
    Finish,
    Output,
    PromptReused,
    PromptScored,
    SequenceRequest,
    Sink,
    Ticket,
)
from engine.infer.sampling import Sampler, Score, score_tokens

# Scoring a prompt needs logits [tokens, vocabulary]: at most so many values at once (64 MiB).
_SCORED_LOGITS = 1 << 24


class Sequence:
    """Lives in the engine thread; only `ticket` is anyone else's.

    Whoever runs it feeds `piece`s until none is left, says so with `fed`, then hands every logits
    after the last token to `sampler`, and what that chose to `take`.
    """

    def __init__(self, request: SequenceRequest, sink: Sink, tokenizer: Tokenizer) -> None:
        self.request, self.ticket = request, Ticket()
        self.arrived = time.monotonic()
        grammar = request.grammar
        matcher = grammar.matcher(request.stop_token_ids) if grammar is not None else None
        self.sampler = Sampler(request.sampling, request.index, request.prompt_ids, matcher)
        self._sink = sink
        self._tokens = list(request.prompt_ids)
        self._to_feed = len(self._tokens)
        self._fed = 0
        self._scores: list[Score | None] = [None]
        self._scores_prompt = request.score_prompt
        self._detokenizer = Detokenizer(tokenizer, request.prompt_ids)
        self._stops = StopStrings(request.stop)
        self._length = 0  # characters of the text so far, held back ones too

    @property
    def waiting(self) -> int:
        """How many tokens are to be fed before the next one is chosen."""
        return self._to_feed - self._fed

    @property
    def to_feed(self) -> list[int]:
        """All the tokens to feed before the next one is chosen."""
        return self._tokens[: self._to_feed]

    @property
    def scores_prompt(self) -> bool:
        """Whether logits are wanted after every token of the pieces, and not of the last alone."""
        return self._scores_prompt

    @property
    def last_token(self) -> int:
        return self._tokens[-1]

    @property
    def to_come(self) -> int:
        """How many tokens may still be chosen."""
        return len(self.request.prompt_ids) + self.request.max_tokens - len(self._tokens)

    def piece(self, limit: int) -> list[int]:
        """The next tokens to feed, at most `limit`, or fewer where each is scored."""
        if self._scores_prompt:
            limit = max(1, min(limit, _SCORED_LOGITS // self.request.model.vocabulary))
        return self._tokens[self._fed : min(self._fed + limit, self._to_feed)]

    def skip(self, tokens: int) -> None:
        """The cache has the state of so many tokens already; at least one is left to feed."""
        assert self._fed == 0
        assert tokens < self._to_feed
        self._fed = tokens
        if tokens and not self.made:
            self._sink(PromptReused(tokens))

    def fed(self, tokens: int, logits: torch.Tensor) -> bool:
        """So many more tokens are in the cache. False when the sequence is over with that.

        logits [tokens, vocabulary] where `scores_prompt`; else what is there does not matter.
        """
        begin, self._fed = self._fed, self._fed + tokens
        if self._scores_prompt:
            targets = self._tokens[begin + 1 : self._fed + 1]
            if targets:
                alternatives = self.request.logprobs or 0
                self._scores += score_tokens(logits[: len(targets)], targets, alternatives)
            if not self.waiting:
                self._sink(PromptScored(tuple(self._scores)))
        if self.waiting or self.request.max_tokens:
            return True
        self._sink(Output("", None, 0, None, Finish("length")))
        return False

    def take(self, token: int, logits: torch.Tensor) -> bool:
        """Send the token that was chosen from logits [vocabulary]; False when it is the last."""
        request = self.request
        if self.sampler.fault is not None:
            self.fail(self.sampler.fault)
            return False
        self._tokens.append(token)
        self.sampler.note(token)
        score = None
        if request.logprobs is not None:
            score = score_tokens(logits[None], [token], request.logprobs)[0]
        offset = self._length
        text, finish = self._text_of(token)
        self._sink(Output(text, token, offset, score, finish))
        return finish is None

    def restart(self) -> None:
        """Its place in the cache was given away: everything so far is to be fed anew."""
        self._fed, self._to_feed = 0, len(self._tokens)
        if self.made:
            self._scores_prompt = False  # it was sent
        elif self._scores_prompt:
            self._scores = [None]

    @property
    def made(self) -> int:
        """How many tokens were chosen."""
        return len(self._tokens) - len(self.request.prompt_ids)

    def fail(self, error: Exception) -> None:
        self._sink(Failed(error))

    def _text_of(self, token: int) -> tuple[str, Finish | None]:
        """The text to send for this token, and whether the sequence ends with it."""
        request = self.request
        if token in request.stop_token_ids:
            return self._rest("", Finish("stop", token))
        made = self._detokenizer.push(token)
        self._length += len(made)
        if self.sampler.is_over:
            return self._rest(made, Finish("stop"))
        if self.made >= request.max_tokens:
            return self._rest(made, Finish("length"))
        text = self._stops.push(made)
        if self._stops.hit is not None:
            return text, Finish("stop", self._stops.hit)
        return text, None

    def _rest(self, made: str, finish: Finish) -> tuple[str, Finish]:
        """Everything held back; a stop string may still be completed by it."""
        text = self._stops.push(made + self._detokenizer.flush())
        if self._stops.hit is not None:
            return text, Finish("stop", self._stops.hit)
        return text + self._stops.flush(), finish


def diverged() -> GenerationFailed:
    """What ends a sequence whose logits are no numbers."""
    return GenerationFailed(
        "The model's log-probs are not numbers: its training has diverged. Train it again "
        "at a lower learning rate.",
        code="model_diverged",
    )


def are_numbers(logits: torch.Tensor) -> list[bool]:
    """Of each row of logits [n, vocabulary], whether it says anything. One not-a-number spreads."""
    finite: list[bool] = logits.amax(-1).isfinite().tolist()
    return finite
