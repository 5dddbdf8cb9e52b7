"""What a chat template leaves out: names, tools and calls that it was given and did not write.

Many templates know only roles and texts. What such a one would drop in silence is refused here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from engine.rows import Message, RichMessage
from engine.template import RenderError

DEFINITIONS = "definitions of tools"
Tools = Sequence[Mapping[str, Any]]
Written = Callable[[Sequence[Message], Tools], str]


class ToolsUnwritten(RenderError):
    """A template that leaves out the tools that it is given."""


def require_all_written(
    text: str, messages: Sequence[Message], tools: Tools, written: Written
) -> None:
    """Raises RenderError where a conversation without something comes to the same text."""
    for what, fewer, left in _without(messages, tools):
        try:
            same = written(fewer, left) == text
        except RenderError:
            continue  # the template asks for it
        if same:
            kind = ToolsUnwritten if what == DEFINITIONS else RenderError
            raise kind(
                f"the base model's chat template does not write {what}; leave them out, or choose "
                "a base whose template does"
            )


def _without(
    messages: Sequence[Message], tools: Tools
) -> Iterator[tuple[str, Sequence[Message], Tools]]:
    """The conversation without each of the things that it has and a template may not know."""
    if tools:
        yield DEFINITIONS, messages, ()
    if any(isinstance(message, RichMessage) and message.tool_calls for message in messages):
        yield "calls of tools", [_stripped(m, tool_calls=()) for m in messages], tools
    if any(isinstance(message, RichMessage) and message.name is not None for message in messages):
        yield "names of speakers", [_stripped(m, name=None) for m in messages], tools


def _stripped(message: Message, **changes: Any) -> Message:
    return message.model_copy(update=changes) if isinstance(message, RichMessage) else message
