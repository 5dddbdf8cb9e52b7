"""How texts become words: one way for translation metrics, another for summaries."""

import re

# mteval-v13a's rules (NIST; what sacrebleu calls 13a), after its entities are resolved.
_PUNCTUATION = re.compile(r"([!-&(-+/:-@\[-`{-~])")
_AFTER_NO_DIGIT = re.compile(r"([^0-9])([.,])")
_BEFORE_NO_DIGIT = re.compile(r"([.,])([^0-9])")
_DIGIT_DASH = re.compile(r"([0-9])(-)")
_WORD = re.compile(r"[^\W_]+")


def mteval(text: str) -> list[str]:
    """Words, numbers and punctuation marks, each by itself; case is kept."""
    text = text.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, sign in (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")):
        text = text.replace(entity, sign)
    text = _PUNCTUATION.sub(r" \1 ", f" {text} ")
    text = _AFTER_NO_DIGIT.sub(r"\1 \2 ", text)
    text = _BEFORE_NO_DIGIT.sub(r" \1 \2", text)
    return _DIGIT_DASH.sub(r"\1 \2 ", text).split()


def words(text: str) -> list[str]:
    """Runs of letters and digits of any script, in lower case."""
    return _WORD.findall(text.lower())
