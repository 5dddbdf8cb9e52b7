"""A process that tries a schema out: `python -m engine.infer.schema_trial`, the schema on stdin.

Compiling is native code that nothing can interrupt, and a short schema can keep it busy for hours:
here it costs a process with a bound on its time and memory. It also writes some documents over the
256 bytes, because patterns are worked out as they are met. Prints what is wrong; nothing where
nothing is. A bound that is met ends it with a signal.
"""

import random
import resource
import sys

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from engine.infer.json_grammar import SchemaUnsupported, reason_of, start_of

MAX_CPU_S = 2
MAX_BYTES = 1 << 30
_DOCUMENTS, _LENGTH = 8, 100


class _Bytes:
    """The tokenizer of single bytes, as llguidance wants it."""

    eos_token_id = 256
    bos_token_id = None
    tokens = (*(bytes([value]) for value in range(256)), b"<end>")
    special_token_ids = (256,)

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        start = start_of(LLTokenizer(TokenizerWrapper(_Bytes())), sys.stdin.read())
        for seed in range(_DOCUMENTS):
            _write(start.deep_copy(), random.Random(seed))
    except SchemaUnsupported as error:
        sys.stdout.write(str(error))


def _write(matcher: LLMatcher, chance: random.Random) -> None:
    """One random document, or how it begins."""
    for _ in range(_LENGTH):
        allowed = [token for token, bias in enumerate(matcher.compute_logit_bias()) if bias]
        if matcher.is_error():
            raise SchemaUnsupported(reason_of(matcher))
        if not allowed:
            raise SchemaUnsupported("it leads to a place where no character can follow")
        token = chance.choice(allowed)
        if token == _Bytes.eos_token_id:
            return
        matcher.consume_token(token)


if __name__ == "__main__":
    main()
