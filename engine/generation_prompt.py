"""Whether a chat template says where the assistant is to speak, when it is asked to."""

from datetime import datetime

from engine.contract import RenderContract
from engine.rows import Message
from engine.template import RenderError

_QUESTION = Message(role="user", content="Question")
_ANSWER = Message(role="assistant", content="Answer")


def prompt_warnings(contract: RenderContract) -> tuple[str, ...]:
    """What a client should know of a base whose template leaves the generation prompt out.

    A template whose answers begin with nothing of their own needs none.
    """
    template, now = contract.template(), datetime.now()
    try:
        asked = template.render([_QUESTION], add_generation_prompt=True, now=now)
        plain = template.render([_QUESTION], add_generation_prompt=False, now=now)
        whole = template.render([_QUESTION, _ANSWER], add_generation_prompt=False, now=now)
    except RenderError:
        return ()  # the rows themselves will tell, with the reason and the row
    header = whole.removeprefix(plain).partition("Answer")[0].strip()
    if asked != plain or not whole.startswith(plain) or not header:
        return ()
    return (
        f"The base model's chat template has no generation prompt: it writes {header!r} before an "
        "answer, but not where one is asked for, so the model has to write that itself. Check the "
        "first answers, or take a base whose template heeds add_generation_prompt.",
    )
