"""The grammars of the schemas that clients send: checked, tried out, compiled once, and kept."""

import asyncio
import json
import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from typing import Any

import structlog
from pydantic import JsonValue
from tokenizers import Tokenizer

from engine.graders import schemas
from engine.graders.limits import MAX_SCHEMA
from engine.infer.errors import RequestInvalid
from engine.infer.grammar import Grammar, Vocabulary
from engine.infer.json_grammar import MAX_STATES, SchemaUnsupported

log = structlog.get_logger()

_MOST_WAITING = 8
_PATIENCE_S = 20.0  # the trial has 2 seconds of a processor, which others may be using

Schema = dict[str, JsonValue]
_Key = tuple[str, str]  # the request's field, and the schema as JSON


class Grammars:
    """Compiles in a thread of its own, one schema at a time. `get` lives on the event loop.

    A refusal is kept, too: asking again costs nothing. Making one takes seconds at 100k tokens.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, kept: int = 32, max_states: int = MAX_STATES
    ) -> None:
        self._most_kept = kept
        self._vocabulary = _vocabulary_of(tokenizer, max_states)
        self._kept: OrderedDict[_Key, asyncio.Future[Grammar]] = OrderedDict()
        self._waiting = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="luthier-grammars")

    async def get(self, schema: Schema, param: str) -> Grammar:
        """The grammar of a schema from the request's field `param`. Raises RequestInvalid."""
        key = (param, json.dumps(schema))
        if len(key[1]) > MAX_SCHEMA:
            raise _invalid(param, f"The schema is above {MAX_SCHEMA:,} characters; shorten it.")
        if key not in self._kept or _is_spent(self._kept[key]):
            self._begin(key)
        self._kept.move_to_end(key)
        return await asyncio.shield(self._kept[key])  # a client that leaves does not end it

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _begin(self, key: _Key) -> None:
        if self._waiting >= _MOST_WAITING:
            raise RequestInvalid(
                f"{self._waiting} new schemas are waiting to be compiled; try again in a moment.",
                param=key[0],
                code="too_many_schemas",
                status=429,
            )
        self._waiting += 1
        work = asyncio.get_running_loop().run_in_executor(self._thread, self._made, *key)
        self._kept[key] = work
        work.add_done_callback(lambda done: self._end(key, done))
        if len(self._kept) > self._most_kept:
            self._kept.popitem(last=False)

    def _end(self, key: _Key, done: "asyncio.Future[Grammar]") -> None:
        self._waiting -= 1
        if done.cancelled() or not isinstance(done.exception(), RequestInvalid | None):
            self._kept.pop(key, None)  # no fault of the schema's

    def _made(self, param: str, text: str) -> Grammar:
        schema: dict[str, Any] = json.loads(text)
        for path, message in _problems_in(schema):
            raise _invalid(f"{param}.{path}".removesuffix("."), message)
        if self._vocabulary is None:
            raise _invalid(param, "This base's tokenizer cannot be kept to a schema; see the log.")
        try:
            opened = json.dumps(_opened(schema))
            _try_out(opened)
            return self._vocabulary.compile(opened, param)
        except SchemaUnsupported as error:
            raise _invalid(param, f"The answer cannot be kept to this schema: {error}.") from error


def _is_spent(work: "asyncio.Future[Grammar]") -> bool:
    return work.done() and work.exception() is None and work.result().spent


def _vocabulary_of(tokenizer: Tokenizer, max_states: int) -> Vocabulary | None:
    try:
        return Vocabulary(tokenizer, max_states=max_states)
    except ValueError:  # the server is of use without schemas
        log.exception("inference.no_schemas")
        return None


def _problems_in(schema: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What the graders' schemas may not say either, and what a mask could not keep."""
    if "x-guidance" in schema:
        yield "x-guidance", "Options of the library are not taken; remove them."
    yield from schemas.problems_in(schema)
    for path, part in schemas.subschemas(schema):
        if part.get("minProperties", 0) > len(part.get("required", ())) + 1:
            reason = "Names outside `properties` may repeat, so that they cannot be counted; "
            yield f"{path}.minProperties".removeprefix("."), f"{reason}put more into `required`."


def _opened(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with the references in its `oneOf`s replaced by what they lead to.

    The library sees whether choices exclude each other only where they are written out. Raises
    SchemaUnsupported.
    """
    whole = deepcopy(schema)
    try:
        for _, part in schemas.subschemas(whole):  # goes on into what is put in here
            choices = part.get("oneOf", [])
            for at, choice in enumerate(choices):
                if isinstance(choice, dict) and choice.keys() == {"$ref"}:
                    choices[at] = deepcopy(schemas.referred(choice["$ref"], schema))
    except ValueError as error:
        raise SchemaUnsupported(f"with the choices of `oneOf` written out, {error}") from error
    return whole


def _try_out(text: str) -> None:
    """In a process that may fail. Raises SchemaUnsupported."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "engine.infer.schema_trial"],
            input=text.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PYTHONPATH": os.pathsep.join(sys.path)},  # and none of our secrets
            timeout=_PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SchemaUnsupported("it takes too long to compile; simplify it") from None
    if done.returncode:
        raise SchemaUnsupported("it takes too much time or memory to compile; simplify it")
    if done.stdout:
        raise SchemaUnsupported(done.stdout.decode(errors="replace"))


def _invalid(param: str, message: str) -> RequestInvalid:
    return RequestInvalid(message, param=param, code="schema_invalid", status=422)
