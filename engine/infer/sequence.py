"""One sequence on its way through a model: its cache, its tokens and the text they make."""

from collections.abc import Sequence as Tokens
from typing import Any

import torch
from tokenizers import Tokenizer

from engine.infer.detokenizer import Detokenizer, StopStrings
from engine.infer.errors import GenerationFailed
from engine.infer.generator import (
    Failed,
    Finish,
    Output,
    PromptScored,
    SequenceRequest,
    Sink,
    Ticket,
)
from engine.infer.sampling import Sampler, Score, score_tokens

# Scoring a prompt needs logits [tokens, vocabulary]: at most so many values at once (64 MiB).
_SCORED_LOGITS = 1 << 24


class Sequence:
    """Lives in the engine thread; only `ticket` is anyone else's."""

    def __init__(
        self, request: SequenceRequest, sink: Sink, tokenizer: Tokenizer, prefill_chunk: int
    ) -> None:
        self.request, self.ticket = request, Ticket()
        self._sink, self._chunk = sink, prefill_chunk
        if request.score_prompt:
            self._chunk = max(1, min(prefill_chunk, _SCORED_LOGITS // request.model.vocabulary))
        self._cache: Any = None  # made with the first forward
        self._fed = 0  # tokens of the prompt that the cache holds
        self._made = 0
        self._next: list[int] = []  # the token to feed next, once the prompt is in
        self._scores: list[Score | None] = [None]
        self._sampler = Sampler(request.sampling, request.index)
        self._detokenizer = Detokenizer(tokenizer, request.prompt_ids)
        self._stops = StopStrings(request.stop)
        self._length = 0  # characters of the text so far, held back ones too

    def step(self) -> bool:
        """One forward, and the token it gives; False when the sequence is over."""
        request = self.request
        if self._fed < len(request.prompt_ids):
            logits = self._prefill()
            if self._fed < len(request.prompt_ids):
                return True
            if request.score_prompt:
                self._sink(PromptScored(tuple(self._scores)))
            if request.max_tokens == 0:
                self._sink(Output("", None, 0, None, Finish("length")))
                return False
        else:
            logits = self._forward(self._next, keep=1)
        return self._take(logits[-1])

    def fail(self, error: Exception) -> None:
        self._sink(Failed(error))

    def _prefill(self) -> torch.Tensor:
        """Feed the next piece of the prompt. Returns logits [tokens or 1, vocabulary]."""
        request = self.request
        end = min(self._fed + self._chunk, len(request.prompt_ids))
        fed = request.prompt_ids[self._fed : end]
        keep = len(fed) if request.score_prompt else 1
        logits = self._forward(fed, keep=keep)
        if request.score_prompt:
            targets = list(request.prompt_ids[self._fed + 1 : end + 1])
            if targets:
                self._scores += score_tokens(logits[: len(targets)], targets, request.logprobs or 0)
        self._fed = end
        return logits

    def _forward(self, token_ids: Tokens[int], *, keep: int) -> torch.Tensor:
        request = self.request
        if self._cache is None:
            self._cache = request.model.new_cache(request.virtual_tokens)
        logits = request.model.forward(token_ids, self._cache, request.lora, keep=keep)
        if not bool(logits.logsumexp(-1).isfinite().all()):
            raise GenerationFailed(
                "The model's log-probs are not numbers: its training has diverged. Train it again "
                "at a lower learning rate.",
                code="model_diverged",
            )
        return logits

    def _take(self, logits: torch.Tensor) -> bool:
        """Choose the next token from logits [vocabulary] and send it."""
        request = self.request
        token = self._sampler.choose(logits)
        self._made += 1
        self._next = [token]
        score = None
        if request.logprobs is not None:
            score = score_tokens(logits[None], [token], request.logprobs)[0]
        offset = self._length
        text, finish = self._text_of(token)
        self._sink(Output(text, token, offset, score, finish))
        return finish is None

    def _text_of(self, token: int) -> tuple[str, Finish | None]:
        """The text to send for this token, and whether the sequence ends with it."""
        request = self.request
        if token in request.stop_token_ids:
            return self._rest("", Finish("stop", token))
        made = self._detokenizer.push(token)
        self._length += len(made)
        if self._made >= request.max_tokens:
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
