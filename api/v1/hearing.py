"""Calls that a model makes of its own accord, where it writes them as most models are taught to.

Hermes, Qwen and the templates made after them have `<tool_call>{"name": ..., "arguments": {...}}
</tool_call>` for it. Text that looks like that and is no call of an offered tool stays text.
"""

import json

from api.v1.tools import ToolCall, ToolCallFunction, as_arguments, new_call_id

BEGIN, END = "<tool_call>", "</tool_call>"


def heard(text: str, offered: frozenset[str]) -> tuple[str, tuple[ToolCall, ...]]:
    """What was said beside the calls, and the calls; all of it and none where one is no call."""
    rest, calls, at = "", [], 0
    while (begin := text.find(BEGIN, at)) >= 0:
        end = text.find(END, begin)
        call = _call(text[begin + len(BEGIN) : end], offered) if end >= 0 else None
        if call is None:
            return text, ()
        rest, at = rest + text[at:begin], end + len(END)
        calls.append(call)
    return rest + text[at:], tuple(calls)


def _call(text: str, offered: frozenset[str]) -> ToolCall | None:
    try:
        said = json.loads(text, parse_constant=_refused)
        name, arguments = said["name"], said.get("arguments", {})
        written = as_arguments(arguments)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(name, str) or name not in offered or not isinstance(arguments, dict):
        return None
    return ToolCall(
        id=new_call_id(), type="function", function=ToolCallFunction(name=name, arguments=written)
    )


def _refused(constant: str) -> float:
    """NaN and the infinities, which are no JSON."""
    raise ValueError(constant)


class Listener:
    """A streamed text, passed on up to where a call may have begun; the rest is told at its end."""

    def __init__(self, offered: frozenset[str]) -> None:
        self._offered, self._held = offered, ""

    def push(self, text: str) -> str:
        """The text that is surely no part of a call."""
        self._held += text
        at = self._held.find(BEGIN)
        if at < 0:
            at = len(self._held) - _overlap(self._held)
        out, self._held = self._held[:at], self._held[at:]
        return out

    def end(self) -> tuple[str, tuple[ToolCall, ...]]:
        """What is left to say, and the calls."""
        return heard(self._held, self._offered)


def _overlap(text: str) -> int:
    """The length of the longest end of a text that begins a call."""
    sizes = range(min(len(text), len(BEGIN) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(BEGIN[:size])), 0)
