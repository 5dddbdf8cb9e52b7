"""Calls that a model makes of its own accord, found in what it wrote."""

import json
from typing import Any

import pytest

from api.v1.speech import Calling, Listening, Plain, Speech, speech_for
from api.v1.tools import FunctionDefinition, Insisted
from tests import clock

WEATHER = '<tool_call>\n{"name": "weather", "arguments": {"town": "Köln"}}\n</tool_call>'
CLOCK = '<tool_call>{"name": "clock"}</tool_call>'
OFFERED = frozenset({"weather", "clock"})


def streamed(speech: Speech, text: str, size: int) -> tuple[str, dict[int, list[str]], Any]:
    """What the pieces add up to: text, calls as name and arguments by index, the reason."""
    pieces = [text[at : at + size] for at in range(0, len(text), size)] or [""]
    said, calls = "", {}  # type: str, dict[int, list[str]]
    deltas = [speech.begun()]
    deltas += [speech.piece(each, is_last=i == len(pieces) - 1) for i, each in enumerate(pieces)]
    for delta in deltas:
        said += delta.content or ""
        for call in delta.tool_calls or ():
            assert call.index is not None
            found = calls.setdefault(call.index, ["", ""])
            found[0] += call.function.name or ""
            found[1] += call.function.arguments
    return said, calls, speech.reason("stop")


@pytest.mark.parametrize(
    ("text", "rest", "names"),
    [
        ("It rains.", "It rains.", []),
        (WEATHER, None, ["weather"]),
        (f"Let me see.\n{WEATHER}\n{CLOCK}", "Let me see.\n\n", ["weather", "clock"]),
        ("a < b, and <tool", "a < b, and <tool", []),
        (WEATHER[:-5], WEATHER[:-5], []),  # cut off
        (f"{WEATHER}<tool_call>oops</tool_call>", f"{WEATHER}<tool_call>oops</tool_call>", []),
        (WEATHER.replace("weather", "bomb"), WEATHER.replace("weather", "bomb"), []),
        ('<tool_call>{"name": "clock", "arguments": [1]}</tool_call>', None, None),
        ("<tool_call>[1]</tool_call>", "<tool_call>[1]</tool_call>", []),
        ("<tool_call>{broken}</tool_call>", "<tool_call>{broken}</tool_call>", []),
        ('<tool_call>{"name": []}</tool_call>', '<tool_call>{"name": []}</tool_call>', []),
    ],
)
def test_calls_of_offered_tools_are_found_and_all_else_stays_text(
    text: str, rest: str | None, names: list[str] | None
) -> None:
    if names is None:
        rest, names = text, []
    speech = Listening(OFFERED)
    message = speech.whole(text)
    assert message.content == rest
    assert [call.function.name for call in message.tool_calls or ()] == names
    assert speech.reason("stop") == ("tool_calls" if names else "stop")
    assert speech.reason("length") == "length"
    for size in (1, 3, 7, 1000):
        said, calls, reason = streamed(Listening(OFFERED), text, size)
        assert said == (rest or "")
        assert [calls[i][0] for i in range(len(calls))] == names
        assert reason == ("tool_calls" if names else "stop")


HALF = r'{"name": "clock", "arguments": {"town": "\ud83d ü"}}'  # of an emoji, as models write


@pytest.mark.parametrize("text", [HALF, f"<tool_call>{HALF}</tool_call>"])
def test_half_of_a_surrogate_pair_breaks_no_answer(text: str) -> None:
    both = (FunctionDefinition(name="clock"), FunctionDefinition(name="weather"))
    insisted = None if text.startswith("<") else Insisted(both, by_name=False)
    speech = speech_for(insisted, OFFERED)
    (call,) = speech.whole(text).tool_calls or ()
    speech.whole(text).model_dump_json()
    assert json.loads(call.function.arguments) == {"town": "\ud83d ü"}
    _, calls, _ = streamed(speech_for(insisted, OFFERED), text, 3)
    assert calls[0] == ["clock", call.function.arguments]


def test_what_is_no_json_is_no_call() -> None:
    text = '<tool_call>{"name": "clock", "arguments": {"at": NaN}}</tool_call>'
    assert Listening(OFFERED).whole(text).content == text


def test_arguments_come_as_json() -> None:
    (call,) = Listening(OFFERED).whole(WEATHER).tool_calls or ()
    assert json.loads(call.function.arguments) == {"town": "Köln"}
    assert (call.type, call.index) == ("function", None)
    assert (call.id or "").startswith("call_")
    (empty,) = Listening(OFFERED).whole(CLOCK).tool_calls or ()
    assert empty.function.arguments == "{}"


def test_text_that_is_surely_none_of_a_call_is_not_held_back() -> None:
    speech = Listening(OFFERED)
    assert speech.piece("Hello", is_last=False).content == "Hello"
    assert speech.piece(" <", is_last=False).content == " "
    assert speech.piece("b>", is_last=False).content == "<b>"


def test_a_long_text_of_beginnings_costs_no_more_than_its_length() -> None:
    begun = clock.now()
    text = "<tool_call>{" * 100_000
    assert Listening(OFFERED).whole(text).content == text
    assert clock.now() - begun < 1.0


def test_each_choice_is_worded_as_was_asked() -> None:
    insisted = Insisted((FunctionDefinition(name="clock"),), by_name=True)
    assert isinstance(speech_for(insisted, OFFERED), Calling)
    assert isinstance(speech_for(None, OFFERED), Listening)
    assert isinstance(speech_for(None, frozenset()), Plain)
