"""Patterns from strangers: RE2's automata, whose time is linear in the text whatever the pattern.

A backtracking engine can be sent into exponential time by a short pattern, and stopping it by a
clock would make a grade depend on how busy the machine is. RE2 (Cox 2010,
https://swtch.com/~rsc/regexp/regexp3.html) has neither fault, at the price of look-around and
back-references.
"""

from functools import lru_cache
from typing import Any

import re2

from engine.graders.grades import GradingFault
from engine.graders.limits import MAX_GROUPS, MAX_PATTERN, MAX_PROGRAM, MAX_STEPS, PATTERN_BYTES

_HINT = "patterns are RE2's, without look-around and back-references"


@lru_cache(maxsize=256)
def compiled(pattern: str, ignore_case: bool = False) -> Any:
    """The pattern's automaton. Raises ValueError with what is wrong."""
    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"the pattern is above {MAX_PATTERN:,} characters; shorten it")
    options = re2.Options()
    options.max_mem = PATTERN_BYTES
    options.log_errors = False
    options.case_sensitive = not ignore_case
    try:
        found = re2.compile(pattern.encode(), options)
    except UnicodeEncodeError:
        raise ValueError("the pattern has a lone surrogate in it") from None
    except re2.error as error:
        reason = error.args[0].decode(errors="replace")[:200]
        raise ValueError(f"the pattern does not compile ({reason}); {_HINT}") from None
    if found.groups > MAX_GROUPS:
        raise ValueError(f"the pattern has above {MAX_GROUPS} groups; write (?:...) for some")
    if found.programsize > MAX_PROGRAM:
        raise ValueError("the pattern is too large when compiled; lower its repetitions")
    return found


def search(
    pattern: str, text: str, *, ignore_case: bool = False, whole: bool = False
) -> tuple[str | None, ...] | None:
    """The match and its groups, None without a match. Raises ValueError and GradingFault."""
    automaton, data = compiled(pattern, ignore_case), text.encode(errors="replace")
    if automaton.programsize * len(data) > MAX_STEPS:
        reason = f"A text of {len(data):,} bytes is too long for so large a pattern; shorten one."
        raise GradingFault("other_error", reason)
    found = automaton.fullmatch(data) if whole else automaton.search(data)
    if found is None:
        return None
    groups = (found.group(), *found.groups())
    return tuple(None if group is None else group.decode(errors="replace") for group in groups)
