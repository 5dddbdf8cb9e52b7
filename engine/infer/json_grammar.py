"""A JSON schema as a grammar, by llguidance. Torch-free: schemas are tried in a small process."""

from typing import TYPE_CHECKING

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

MAX_STATES = 20_000  # that are worked out of the patterns of one schema, at 1 to 2 kB
_JSON: "JsonCompileOptions" = {
    "item_separator": ",",
    "key_separator": ":",
    # Bounded: an undecided model would otherwise fill its answer with spaces.
    "whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,32}",
    "coerce_one_of": False,
    "lenient": False,
}
_PLAIN = {  # what the library says, and what a client can do something with
    "oneOf constraints": "the choices of a `oneOf` cannot be told apart; give each a required "
    "`const` of its own, or write `anyOf`",
    "NoExtension": "it leads to a place where no character can follow",
    "fuel exhausted": "its patterns are too much work together; simplify them",
}


class SchemaUnsupported(ValueError):
    """The schema says something that no mask can promise; the text says what."""


def start_of(vocabulary: LLTokenizer, schema: str, max_states: int = MAX_STATES) -> LLMatcher:
    """The matcher of a schema, given as JSON. Raises SchemaUnsupported."""
    limits = LLParserLimits(max_lexer_states=max_states, verbose_errors=False)
    try:
        grammar = LLMatcher.grammar_from_json_schema(schema, overrides=_JSON)
    except ValueError as error:
        raise SchemaUnsupported(str(error)) from error
    matcher = LLMatcher(vocabulary, grammar, log_level=0, limits=limits)
    if matcher.is_error():
        raise SchemaUnsupported(reason_of(matcher))
    return matcher


def reason_of(matcher: LLMatcher) -> str:
    """The library's message in one short line."""
    text = " ".join(matcher.get_error().replace("<non-verbose/>", "").split())
    plain = [said for known, said in _PLAIN.items() if known in text]
    return plain[0] if plain else text.rstrip(".")[:300]
