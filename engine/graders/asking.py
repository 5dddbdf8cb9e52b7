"""What the graders with a model share: their messages, and how answers are read."""

import re
from collections.abc import Iterator, Sequence

from engine.graders.grades import GraderProblem, GradingFault
from engine.graders.judge import Question, Sampling, Turn
from engine.graders.sample import strict_json
from engine.graders.scene import Scene
from engine.graders.templates import problems_of
from engine.rows import Message, Role

ROLES: dict[str, Role] = {
    "developer": "system",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
}
_NUMBER = re.compile(r"(?<![\w./])[-+]?\d{1,12}(?:\.\d{1,12})?(?![\w%/]|\.\d)")
_SHOWN = 80


def question(
    scene: Scene, model: str, turns: Sequence[Turn], sampling: Sampling, how: str
) -> Question:
    """The rendered messages; the last also says how to answer. Raises GradingFault."""
    messages = [Message(role=ROLES[turn.role], content=scene.text(turn.content)) for turn in turns]
    if how and messages[-1].role != "assistant":
        last = messages.pop()
        messages.append(Message(role=last.role, content=f"{last.content}\n\n{how}"))
    return Question(where=scene.where, model=model, messages=tuple(messages), sampling=sampling)


def turn_problems(turns: Sequence[Turn]) -> Iterator[GraderProblem]:
    for place, turn in enumerate(turns):
        yield from problems_of(f"input.{place}.content", turn.content)


def number_in(answer: str | None) -> float:
    """{"result": 0.7}, {"score": 0.7}, 0.7, or a text with just one number in it.

    Raises GradingFault (model_grader_parse_error), also when two numbers could be meant.
    """
    text = (answer or "").strip()
    value = _json_result(text)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    found = _NUMBER.findall(text)
    if len(found) != 1:
        reason = f"The judge's answer {text[:_SHOWN]!r} has {len(found) or 'no'} numbers, not one."
        raise GradingFault("model_grader_parse_error", reason)
    return float(found[0])


def label_in(answer: str | None, labels: Sequence[str]) -> str:
    """The label that the answer is, or the only one that stands in it as words of their own.

    Case does not count. Raises GradingFault (model_grader_parse_error) for none or several.
    """
    text = (answer or "").strip()
    value = _json_result(text)
    said = (value if isinstance(value, str) else text).casefold().strip(" \t\r\n.\"'`*")
    exact = [label for label in labels if label.casefold() == said]
    found = exact or [label for label in labels if _stands_in(label.casefold(), said)]
    if len(found) != 1:
        reason = f"The judge's answer {text[:_SHOWN]!r} names {len(found) or 'no'} labels, not one."
        raise GradingFault("model_grader_parse_error", reason)
    return found[0]


def _stands_in(label: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(label)}(?!\w)", text) is not None


def _json_result(text: str) -> object:
    """The number or text of an answer in JSON; None for any other answer."""
    try:
        value = strict_json(text)
    except ValueError:
        return None
    return value.get("result", value.get("score")) if isinstance(value, dict) else value
