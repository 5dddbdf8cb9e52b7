"""docs/compatibility.md: every method of OpenAI's SDK that concerns Luthier, called; which work.

Run by `make compatibility`. The methods are those that the installed SDK has, the fields those of
its types; each is tried on a `luthier serve` that is started for it, and what came is written down.
"""

import dataclasses
import functools
import inspect
import json
import tempfile
import time
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params

from benchmarks.blocking import blocking
from benchmarks.sdk_calls import CALLS, HI, Scene, receiver
from jobs.settings import REPO
from tests.v1.house import BASE, DATA, open_house

PAGE = REPO / "docs" / "compatibility.md"
FOUND = REPO / "docs" / "compatibility.json"
RESOURCES = (
    "files", "uploads", "fine_tuning", "models", "chat", "completions", "webhooks",
)  # fmt: skip
LOOPBACK = "127.0.0.0/8"
NOT_HERE = {
    "fine_tuning.checkpoints.permissions.": "Projects of one organization share checkpoints at "
    "OpenAI. Here a tenant's models are its own, and there is nobody to share them with.",
    "chat.completions.list": "Answers are not stored, whatever `store` says.",
    "chat.completions.retrieve": "Answers are not stored, whatever `store` says.",
    "chat.completions.update": "Answers are not stored, whatever `store` says.",
    "chat.completions.delete": "Answers are not stored, whatever `store` says.",
    "chat.completions.messages.list": "Answers are not stored, whatever `store` says.",
}
TOOL: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
# A value of each field that is not its default. `tools` need a template that writes them.
VALUES: dict[str, Any] = {
    "audio": {"format": "wav", "voice": "alloy"},
    "best_of": 1,
    "echo": True,
    "frequency_penalty": 0.5,
    "function_call": "auto",
    "functions": [{"name": "f"}],
    "logit_bias": {"5": -100},
    "max_completion_tokens": 4,
    "max_tokens": 4,
    "messages": HI,
    "metadata": {"a": "b"},
    "modalities": ["text", "audio"],
    "moderation": {"model": "omni-moderation-latest"},
    "n": 2,
    "parallel_tool_calls": False,
    "prediction": {"type": "content", "content": "x"},
    "presence_penalty": 0.5,
    "prompt": "Once",
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "implicit"},
    "prompt_cache_retention": "24h",
    "reasoning_effort": "low",
    "response_format": {"type": "json_object"},
    "safety_identifier": "me",
    "seed": 7,
    "service_tier": "auto",
    "stop": ["x"],
    "store": True,
    "stream": True,
    "stream_options": {"include_usage": True},
    "suffix": "x",
    "temperature": 0.5,
    "tool_choice": "none",
    "tools": [TOOL],
    "top_logprobs": 2,
    "top_p": 0.5,
    "user": "me",
    "verbosity": "low",
    "web_search_options": {},
}
ALONG: dict[str, dict[str, Any]] = {
    "stream_options": {"stream": True},
    "top_logprobs": {"logprobs": True},
}


def methods(client: openai.OpenAI) -> list[str]:
    """Every method of the SDK's resources that are compared, by its path."""
    return [name for each in RESOURCES for name in _of(getattr(client, each), each)]


def _of(resource: Any, path: str) -> Iterator[str]:
    for name in sorted(dir(type(resource))):
        if name.startswith(("_", "with_")):
            continue
        member = inspect.getattr_static(type(resource), name)
        if isinstance(member, functools.cached_property | property):
            yield from _of(getattr(resource, name), f"{path}.{name}")
        elif isinstance(member, types.FunctionType):
            yield f"{path}.{name}"


def tried(scene: Scene, method: str) -> dict[str, Any]:
    """What came of one method."""
    call = CALLS.get(method)
    if call is None:
        return {"method": method, "works": False, "seen": "there is no call of it in sdk_calls.py"}
    try:
        call(scene)
    except KeyError as error:
        return {"method": method, "works": False, "seen": f"needs what another makes: {error}"}
    except Exception as error:  # the table says what came, whatever it is
        return {"method": method, "works": False, "seen": _said(error)}
    return {"method": method, "works": True}


def tried_by_all(scene: Scene, known: list[str]) -> list[dict[str, Any]]:
    """Every method, in an order in which it can be called; `works`, if it does by both clients."""
    order = [*(name for name in CALLS if name in known), *(set(known) - set(CALLS))]
    found = {name: tried(scene, name) for name in order}
    with blocking(scene.client) as client:
        again = dataclasses.replace(scene, client=client, made={})
        for name in order:
            row = tried(again, name)
            if found[name]["works"] and not row["works"]:
                found[name] = row | {"seen": f"AsyncOpenAI: {row['seen']}"}
    return [found[name] for name in known]


def _said(error: Exception) -> str:
    if isinstance(error, openai.APIStatusError):
        return error.message.removeprefix("Error code: ")
    return f"{type(error).__name__}: {error}".strip(": ")


def fields(client: openai.OpenAI, route: str, params: type, needed: tuple[str, ...]) -> list[Any]:
    """Each field of the SDK's type: taken, or refused with what reason."""
    found = []
    for name in sorted(typing.get_type_hints(params)):
        if name == "model":
            continue
        value = VALUES.get(name, 2 if route == "/completions" else True)  # of logprobs
        body = {"model": BASE, **{each: VALUES[each] for each in needed}, name: value}
        row: dict[str, Any] = {"field": name, "sent": value}
        try:
            client.post(route, body=body | ALONG.get(name, {}), cast_to=str)
        except openai.APIStatusError as error:
            row["refused"] = _said(error)
        found.append(row)
    return found


def table(found: dict[str, Any]) -> str:
    working = sum(row["works"] for row in found["methods"])
    lines = [
        "# OpenAI's SDK against Luthier",
        "",
        "Made by `make compatibility`, which calls every method below on a running",
        "`luthier serve`; no line is written by hand but the reasons why something is left out.",
        "`tests/v1/` runs OpenAI's Python and npm packages, lm-eval and LiteLLM, unmodified,",
        "against the same.",
        "",
        f"openai {found['sdk']}, {found['day']}: **{working} of {len(found['methods'])}** methods "
        "work, with `OpenAI` and with `AsyncOpenAI`.",
        "",
        "| method | works | why not |",
        "|---|---|---|",
        *(_line(row) for row in found["methods"]),
    ]
    for route, rows in found["fields"].items():
        taken = [f"`{row['field']}`" for row in rows if "refused" not in row]
        lines += [
            "",
            f"## Fields of POST /v1{route}",
            "",
            f"Taken: {', '.join(taken)}.",
            "",
            "| field | sent | refused, because |",
            "|---|---|---|",
        ]
        lines += [
            f"| `{row['field']}` | `{json.dumps(row['sent'])}` | {_cell(row['refused'])} |"
            for row in rows
            if "refused" in row
        ]
    lines += [
        "",
        "`store`, `metadata`, `user`, `service_tier`, `safety_identifier`, `prediction` and those",
        "of the prompt cache are taken and have no effect. Also taken are vLLM's `top_k`, `min_p`,",
        "`repetition_penalty`, `stop_token_ids` and `ignore_eos`, and `adapters`, Luthier's own:",
        'of `[{"adapter_id": "ad_...", "weight": 0.5}, ...]` the sum, on the base in `model`.',
        "",
    ]
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    if row["works"]:
        return f"| `{row['method']}` | yes | |"
    reason = next((why for name, why in NOT_HERE.items() if row["method"].startswith(name)), None)
    return f"| `{row['method']}` | **no** | {_cell(reason or row['seen'])} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")[:300]


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        receiver() as (url, deliveries),
        open_house(Path(folder) / "data", webhook_networks=(LOOPBACK,)) as house,
        openai.OpenAI(base_url=house.v1, api_key=house.key, max_retries=0, timeout=60) as client,
    ):
        rows = (DATA / "demo_train.jsonl").read_bytes()
        scene = Scene(client, BASE, house.adapter_id, rows, url, deliveries)
        chat = chat_create_params.CompletionCreateParamsStreaming
        text = completion_create_params.CompletionCreateParamsStreaming
        found = {
            "sdk": openai.__version__,
            "day": time.strftime("%Y-%m-%d", time.gmtime()),
            "methods": tried_by_all(scene, methods(client)),
            "fields": {
                "/chat/completions": fields(client, "/chat/completions", chat, ("messages",)),
                "/completions": fields(client, "/completions", text, ("prompt",)),
            },
        }
    FOUND.write_text(json.dumps(found, indent=1) + "\n")
    PAGE.write_text(table(found))
    for row in found["methods"]:
        print("works " if row["works"] else "NOT   ", row["method"], row.get("seen", ""))


if __name__ == "__main__":
    main()
