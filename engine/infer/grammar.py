"""What may be written next: a JSON schema over a vocabulary, by llguidance (docs/adr/0012)."""

import threading
import time
from collections.abc import Iterable

import torch
from llguidance import LLMatcher, LLTokenizer
from tokenizers import Tokenizer

from engine.infer.errors import RequestInvalid
from engine.infer.json_grammar import MAX_STATES, reason_of, start_of

_END = "<|end of document|>"  # an id of our own: the model's stop tokens differ by adapter
_SLOWEST_MASK_S = 1.0  # of one thread's time; ordinary masks take microseconds


class Grammar:
    """A compiled schema over a vocabulary; any thread may ask it for a matcher.

    `param` is the field of the request that the schema came in, for errors. Its matchers share
    what they work out of its patterns, within a bound: once that is `spent`, make a new one.
    """

    def __init__(self, start: LLMatcher, param: str) -> None:
        self._start, self.param = start, param
        self.spent = False
        self._lock = threading.Lock()

    def matcher(self, stop_token_ids: Iterable[int] = ()) -> "Matcher":
        """At the start of a document. stop_token_ids: what may only follow a whole one."""
        with self._lock:
            return Matcher(self, self._start.deep_copy(), sorted(stop_token_ids))


class Matcher:
    """Where one sequence is in its document. Lives in the engine thread.

    A `fault` is what ends the sequence: the schema costs too much here, or leads nowhere.
    """

    def __init__(self, grammar: Grammar, inner: LLMatcher, stops: list[int]) -> None:
        self._grammar, self._inner, self._stops = grammar, inner, stops
        self.fault: RequestInvalid | None = None

    @property
    def is_over(self) -> bool:
        """The document is whole, and nothing can be added to it."""
        if not self._inner.is_accepting():
            return False
        if self._inner.is_stopped():
            return True
        allowed = self._inner.compute_logit_bias()  # only then is it known of some patterns
        return len(allowed) - allowed.count(0) == 1 and bool(allowed[-1])

    def masked(self, logits: torch.Tensor) -> torch.Tensor:
        """A copy of the logits [vocabulary], -inf where a token may not come next.

        As they are, where there is a fault.
        """
        begun = time.thread_time()
        allowed = torch.frombuffer(bytearray(self._inner.compute_logit_bias()), dtype=torch.uint8)
        if self._inner.is_error():
            self._give_up("schema_too_complex", reason_of(self._inner))
            return logits
        if time.thread_time() - begun > _SLOWEST_MASK_S:
            self._give_up("schema_too_complex", "a pattern or a choice in it is too large")
            return logits
        size = logits.shape[-1]
        mask = torch.zeros(size, dtype=torch.bool)
        known = min(size, len(allowed) - 1)  # the last is _END; a model may have more rows
        mask[:known] = allowed[:known] != 0
        mask[[token for token in self._stops if token < size]] = self._inner.is_accepting()
        if not bool(mask.any()):
            self._give_up("schema_unsatisfiable", "no token can follow what was written")
            return logits
        return logits.masked_fill(~mask.to(logits.device), float("-inf"))

    def accept(self, token_id: int) -> None:
        """The sequence goes on with this token."""
        if self.fault is None and token_id not in self._stops:
            self._inner.consume_token(token_id)
            if self._inner.is_error():
                self._give_up("schema_too_complex", reason_of(self._inner))

    def _give_up(self, code: str, reason: str) -> None:
        self._grammar.spent = True
        self.fault = RequestInvalid(
            f"The answer cannot be kept to this schema: {reason}. Simplify the schema.",
            param=self._grammar.param,
            code=code,
            status=422,
        )


class Vocabulary:
    """A tokenizer's tokens as bytes, ready for schemas.

    Making one holds everything else up: two seconds at 131k tokens. Raises ValueError where the
    library does not know the kind of tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer, *, max_states: int = MAX_STATES) -> None:
        self._max_states = max_states
        own = Tokenizer.from_str(tokenizer.to_str())
        own.no_padding()
        own.no_truncation()
        own.add_special_tokens([_END])
        self._inner = LLTokenizer(own.to_str(), eos_token=own.token_to_id(_END))
        # Its first mask builds tables that all others share.
        self.compile('{"type": "object"}', "").matcher().masked(torch.zeros(own.get_vocab_size()))

    def compile(self, schema: str, param: str) -> Grammar:
        """The grammar of a schema, given as JSON. Raises SchemaUnsupported."""
        return Grammar(start_of(self._inner, schema, self._max_states), param)
