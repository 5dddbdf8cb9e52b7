"""`luthier score`: ask a reward model which answer is better."""

import json
import sys
from typing import Annotated, Any

import typer

from cli.configuration import AsJson, Key, Url


def score(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="- reads standard input.")],
    answers: Annotated[list[str], typer.Argument(metavar="ANSWER...")],
    adapter: Annotated[str, typer.Option("--adapter", "-a", help="ad_..., a reward model's")],
    system: Annotated[
        str | None, typer.Option("--system", help="A system message before it.")
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Ask a reward model which answer is better; the best comes first."""
    from cli.client import connect

    text = sys.stdin.read() if prompt == "-" else prompt
    with connect(url, key) as client:
        answer = client.post("/score", request(text, answers, adapter=adapter, system=system))
    if as_json:
        print(json.dumps(answer, indent=2))
        return
    for each in sorted(answer["data"], key=lambda each: -each["score"]):
        print(f"{each['score']:+.4f}  {answers[each['index']]}")


def request(
    prompt: str, answers: list[str], *, adapter: str, system: str | None = None
) -> dict[str, Any]:
    """The body of POST /score."""
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    return {"adapter_id": adapter, "messages": messages, "completions": answers}
