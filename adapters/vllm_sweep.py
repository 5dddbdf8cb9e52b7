"""Takes away from vLLM what was deleted, and what no longer fits on its disk.

vLLM asks a resolver once for each name, and reads a folder again whenever its memory was given to
another adapter, in the middle of a batch: a folder that is missing then ends vLLM's engine. So a
name is taken out of vLLM's list first, and its folder only when every request that could still use
it has long ended.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterator

import structlog

from adapters.cache import AdapterCache
from adapters.errors import AdapterCorrupt, AdapterMissing
from adapters.registry import tenant_of
from storage.objects import ObjectStore, StorageError

log = structlog.get_logger()

SWEEP_S = 3.0  # between two looks at all that is served
KEEP_S = 3600.0  # a folder, after its name was taken away: longer than a request lives


class Sweep:
    """`served` are the names in vLLM's list, oldest first; `unload` takes one out of it."""

    def __init__(
        self,
        store: ObjectStore,
        cache: AdapterCache,
        budget_bytes: int,
        served: Callable[[], Collection[str]],
        unload: Callable[[str], Awaitable[object]],
        *,
        keep_s: float = KEEP_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._cache, self._budget_bytes = store, cache, budget_bytes
        self._served, self._unload = served, unload
        self._keep_s, self._clock = keep_s, clock
        self._unloaded: dict[str, float] = {}  # when, by name
        self._looked = False

    async def run(self) -> None:
        """Sweep until cancelled. Storage that does not answer deletes nothing."""
        while True:
            try:
                await self.turn()
            except StorageError as error:
                log.warning("vllm.sweep_failed", error=type(error).__name__)
            await asyncio.sleep(SWEEP_S)

    async def turn(self) -> None:
        """One look at everything. Raises StorageError."""
        ours = self._cache.sizes()
        names = [name for name in self._served() if name in ours]
        # What an earlier process left on the disk is looked at once.
        asked = names if self._looked else list(ours)
        gone = await asyncio.to_thread(lambda: set(self._deleted(asked)))
        self._looked = True
        staying = [name for name in names if name not in gone]
        for name in [*gone, *self._beyond_budget(staying, ours)]:
            await self._unload(name)
            self._unloaded[name] = self._clock()
            log.info("vllm.unloaded", adapter=name, deleted=name in gone)
        await asyncio.to_thread(self._clear)

    def _deleted(self, names: Collection[str]) -> Iterator[str]:
        for name in names:
            try:
                tenant_of(self._store, name)
            except (AdapterMissing, AdapterCorrupt):
                yield name

    def _beyond_budget(self, names: Collection[str], sizes: dict[str, int]) -> Iterator[str]:
        """The longest served, until the others fit. Who asks for one again gets it again."""
        excess = sum(sizes[name] for name in names) - self._budget_bytes
        for name in names:
            if excess <= 0:
                return
            excess -= sizes[name]
            yield name

    def _clear(self) -> None:
        """Delete the folders whose time is up; one that came back is served, and stays."""
        served = set(self._served())
        for name, since in list(self._unloaded.items()):
            is_due = since < self._clock() - self._keep_s
            if name in served or (is_due and self._cache.drop_idle(name, self._keep_s)):
                del self._unloaded[name]
