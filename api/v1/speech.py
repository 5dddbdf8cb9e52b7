"""How one choice of a chat is worded: as text, as the call insisted on, or as calls heard in it."""

from typing import Protocol

from api.v1.chat_shapes import AnswerMessage, Delta
from api.v1.hearing import Listener, heard
from api.v1.tools import Insisted, ToolCall, ToolCallFunction


class Speech(Protocol):
    """Whole at once, or begun and then told piece by piece; the reason is known after the text."""

    def whole(self, text: str) -> AnswerMessage: ...
    def begun(self) -> Delta: ...
    def piece(self, text: str, *, is_last: bool) -> Delta: ...
    def reason(self, finish_reason: str | None) -> str | None: ...


class Plain:
    """The text as it is."""

    def whole(self, text: str) -> AnswerMessage:
        return AnswerMessage(content=text)

    def begun(self) -> Delta:
        return Delta(role="assistant", content="")

    def piece(self, text: str, *, is_last: bool) -> Delta:
        return Delta(content=text or None)

    def reason(self, finish_reason: str | None) -> str | None:
        return finish_reason


class Calling:
    """The text is the call that was insisted on."""

    def __init__(self, insisted: Insisted) -> None:
        self._insisted, self._held = insisted, ""

    def whole(self, text: str) -> AnswerMessage:
        return AnswerMessage(content=None, tool_calls=(self._insisted.call(text),))

    def begun(self) -> Delta:
        calls = () if self._insisted.several else (self._insisted.begun(),)
        return Delta(role="assistant", tool_calls=calls or None)

    def piece(self, text: str, *, is_last: bool) -> Delta:
        if not self._insisted.several:
            function = ToolCallFunction(arguments=text)
            return Delta(tool_calls=(ToolCall(index=0, function=function),) if text else None)
        self._held += text  # which function it is shows at the end
        return Delta(tool_calls=(self._insisted.call(self._held, index=0),) if is_last else None)

    def reason(self, finish_reason: str | None) -> str | None:
        return self._insisted.reason(finish_reason)


class Listening:
    """The text as it is, but for the calls in it."""

    def __init__(self, offered: frozenset[str]) -> None:
        self._offered, self._listener = offered, Listener(offered)
        self._calls: tuple[ToolCall, ...] = ()

    def whole(self, text: str) -> AnswerMessage:
        rest, self._calls = heard(text, self._offered)
        content = None if self._calls and not rest.strip() else rest
        return AnswerMessage(content=content, tool_calls=self._calls or None)

    def begun(self) -> Delta:
        return Delta(role="assistant", content="")

    def piece(self, text: str, *, is_last: bool) -> Delta:
        said = self._listener.push(text)
        if is_last:
            rest, self._calls = self._listener.end()
            said += rest
        calls = (call.model_copy(update={"index": i}) for i, call in enumerate(self._calls))
        return Delta(content=said or None, tool_calls=tuple(calls) or None)

    def reason(self, finish_reason: str | None) -> str | None:
        return "tool_calls" if self._calls and finish_reason == "stop" else finish_reason


def speech_for(insisted: Insisted | None, offered: frozenset[str]) -> Speech:
    """For one choice of an answer."""
    if insisted is not None:
        return Calling(insisted)
    return Listening(offered) if offered else Plain()
