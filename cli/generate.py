"""`luthier generate`: ask an adapter, or a base model."""

import json
import sys
from typing import Annotated, Any

import typer

from cli.configuration import AsJson, Key, Url


def generate(
    message: Annotated[str, typer.Argument(metavar="MESSAGE", help="- reads standard input.")],
    adapter: Annotated[str | None, typer.Option("--adapter", "-a", help="ad_...")] = None,
    base_model: Annotated[
        str | None, typer.Option("--base-model", help="[without an adapter: the first allowed]")
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", help="A system message before it.")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Complete the text as it is, without the chat template.")
    ] = False,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1)] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", min=0.0, help="0: always the likeliest token.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print words as they come.")] = False,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Ask an adapter, or a base model."""
    from cli.client import connect

    text = sys.stdin.read() if message == "-" else message
    body = request(
        text, adapter=adapter, base_model=base_model, system=system, raw=raw,
        max_tokens=max_tokens, temperature=temperature, seed=seed,
    )  # fmt: skip
    with connect(url, key) as client:
        if not adapter and not base_model:
            body["base_model"] = client.first_model()
        if stream and not as_json:
            for chunk in client.generate(body | {"stream": True}):
                print(chunk.get("text", ""), end="", flush=True)
            print()
        else:
            answer = client.post("/generate", body)
            print(json.dumps(answer, indent=2) if as_json else answer["text"])


def request(
    text: str,
    *,
    adapter: str | None = None,
    base_model: str | None = None,
    system: str | None = None,
    raw: bool = False,
    **sampling: Any,
) -> dict[str, Any]:
    """The body of POST /generate; options that are None are left to the service."""
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": text})
    body: dict[str, Any] = {"prompt": text} if raw else {"messages": messages}
    body |= {"adapter_id": adapter, "base_model": base_model, **sampling}
    return {name: value for name, value in body.items() if value is not None}
