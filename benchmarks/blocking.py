"""AsyncOpenAI for code that waits: every call runs to its end on a loop of its own."""

import asyncio
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai


class Blocking:
    """What it is given, and all that comes out of it, without `await`."""

    def __init__(self, target: Any, runner: asyncio.Runner) -> None:
        self._target, self._runner = target, runner

    def __getattr__(self, name: str) -> Any:
        return self._settled(getattr(self._target, name))

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._settled(self._target(*args, **options))

    def __iter__(self) -> Iterator[Any]:
        return iter(self._runner.run(_collected(self._target)))

    def __enter__(self) -> "Blocking":
        return Blocking(self._runner.run(_entered(self._target)), self._runner)

    def __exit__(self, *exc: Any) -> None:
        self._runner.run(_left(self._target, exc))

    def _settled(self, value: Any) -> Any:
        """A page or a stream stays one, to be iterated; other results are waited for."""
        if hasattr(value, "__aiter__") or hasattr(value, "__aenter__"):
            return Blocking(value, self._runner)
        if inspect.isawaitable(value):
            return self._settled(self._runner.run(_awaited(value)))
        is_resource = type(value).__module__.startswith("openai.resources")
        return Blocking(value, self._runner) if callable(value) or is_resource else value


async def _awaited(value: Any) -> Any:
    return await value


async def _collected(value: Any) -> list[Any]:
    return [each async for each in value]


async def _entered(value: Any) -> Any:
    return await value.__aenter__()


async def _left(value: Any, exc: Any) -> None:
    await value.__aexit__(*exc)


@contextmanager
def blocking(client: openai.OpenAI) -> Iterator[Any]:
    """The same service's AsyncOpenAI, used as `client` is."""
    options = {"max_retries": client.max_retries, "timeout": client.timeout}
    own = openai.AsyncOpenAI(base_url=client.base_url, api_key=client.api_key, **options)
    with asyncio.Runner() as runner:
        try:
            yield Blocking(own, runner)
        finally:
            runner.run(own.close())
