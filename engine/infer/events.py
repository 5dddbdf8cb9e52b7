"""From the engine's thread to the event loop."""

import asyncio
import contextlib

from engine.infer.generator import Event, Sink


class EventQueue:
    """What the sequences of one request send, each event with the number of its sequence.

    Made on the event loop; its sinks may be called from any thread. It holds at most what the
    request's sequences can generate.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

    def sink(self, number: int) -> Sink:
        def put(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody listens
                self._loop.call_soon_threadsafe(self._queue.put_nowait, (number, event))

        return put

    async def get(self) -> tuple[int, Event]:
        return await self._queue.get()
