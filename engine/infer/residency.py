"""Which adapters are in memory: loaded when first asked for, the least recently used leave."""

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence, Set
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import structlog

from engine.infer.errors import (
    AdapterNotFound,
    AdapterRefused,
    AdapterUnavailable,
    RequestInvalid,
)
from engine.infer.loader import Found, Loader, Served
from engine.infer.metrics import Metrics
from engine.infer.model import ServedModel
from engine.infer.room import Room, Seat
from engine.infer.score_verification import ScoreVerifier
from engine.infer.verification import Verifier

log = structlog.get_logger()

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_RECHECK_AFTER_S = 1.0  # a resident adapter may have been deleted,
_RECHECK_WAIT_S = 1.0  # but a store that does not answer must not end its service
_REFUSAL_S = 30.0  # how long a refused adapter is not tried again
_MAX_REFUSALS = 1024
_MAX_VERIFIED = 65_536


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Not the exception itself: its traceback would keep the weights in memory."""

    at: float
    code: str
    message: str


class _Slot(Seat):
    """An adapter that is in memory, or on its way there."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.room: Room | None = None
        self.load: asyncio.Task[Served]
        self.own: ServedModel | None = None  # a model of its own, once it is read
        self.recheck: asyncio.Task[None] | None = None
        self.checked_at = 0.0
        self.deleted = False


class Residency:
    """Hands out what to generate with. Lives on the event loop; loading happens in threads.

    `forget` is told of a model of its own that has left.
    """

    def __init__(
        self,
        base: Served,
        loader: Loader,
        verifier: Verifier,
        score_verifier: ScoreVerifier,
        metrics: Metrics,
        forget: Callable[[ServedModel], None],
        *,
        max_resident: int,
        max_resident_bytes: int | None,
        max_full_models: int,
        max_full_model_bytes: int | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._base, self._loader = base, loader
        self._verifier, self._score_verifier = verifier, score_verifier
        self._metrics, self._clock = metrics, clock
        self._forget_model = forget
        self._max_resident = max_resident
        self._gathering = asyncio.Lock()
        self._verified: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._slots: dict[str, _Slot] = {}
        self._refusals: dict[str, _Refusal] = {}
        self._rooms = {
            "adapter": Room(max_resident, max_resident_bytes, self._forget),
            "full": Room(max_full_models, max_full_model_bytes, self._forget),
        }

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[Served]:
        """Keep this model in memory while the caller generates with it.

        Raises AdapterNotFound, AdapterRefused, AdapterUnavailable.
        """
        if name == self._base.name:
            yield self._base
            return
        async with self._pinned(name) as slot:
            yield slot.load.result()

    @asynccontextmanager
    async def _pinned(self, name: str) -> AsyncIterator[_Slot]:
        slot = self._slots.get(name) or self._open(name)
        slot.pins += 1
        try:
            await asyncio.shield(slot.load)
            await self._recheck(slot)
            if slot.room:
                slot.room.touch(slot)
            yield slot
        finally:
            slot.pins -= 1
            if slot.room:
                slot.room.changed(slot)
                self._count()

    @asynccontextmanager
    async def use_all(self, names: Sequence[str]) -> AsyncIterator[list[Served]]:
        """Several at once. Raises what `use` does, and RequestInvalid where they are too many."""
        others = set(names) - {self._base.name}
        if len(others) > self._max_resident:
            raise _too_many(f"{self._max_resident} adapters")
        await self._check_fit(others)
        async with AsyncExitStack() as stack:
            async with self._gathering:  # who has some and waits for more must be the only one
                served = [await stack.enter_async_context(self.use(name)) for name in names]
            yield served

    async def _check_fit(self, names: Set[str]) -> None:
        """Each by itself, to know its size: of too many together, some would wait for the rest."""
        sizes: dict[Room, list[int]] = {}
        for name in names:
            async with self._pinned(name) as slot:
                assert slot.room is not None, "it is loaded"
                sizes.setdefault(slot.room, []).append(slot.size_bytes)
        for room, taken in sizes.items():
            if not room.could_seat(taken):
                raise _too_many(room.limits)

    def resident(self) -> list[str]:
        """The names of the adapters that are ready."""
        return [slot.name for slot in self._slots.values() if slot.ready]

    async def close(self) -> None:
        """Give up what is still loading."""
        tasks = [slot.load for slot in self._slots.values()]
        tasks += [slot.recheck for slot in self._slots.values() if slot.recheck]  # type: ignore[misc]  # results unused
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _open(self, name: str) -> _Slot:
        """Start the one load of this adapter, unless it was refused a moment ago."""
        if not _NAME.fullmatch(name):  # names become paths: only plain ones reach `fetch`
            raise AdapterNotFound(name)
        refusal = self._refusals.get(name)
        if refusal and self._clock() - refusal.at < _REFUSAL_S:
            raise AdapterRefused(refusal.code, refusal.message)
        slot = self._slots[name] = _Slot(name)
        slot.load = asyncio.create_task(self._load(slot))
        # Its error belongs to those who wait; when they have all gone, nobody needs to hear it.
        slot.load.add_done_callback(lambda task: task.cancelled() or task.exception())
        return slot

    async def _load(self, slot: _Slot) -> Served:
        started = self._clock()
        outcome = "cancelled"
        try:
            served = await self._bring(slot)
            outcome = "ok"
        except AdapterRefused as error:
            outcome = error.code
            self._refuse(slot.name, error)
            raise
        except (AdapterNotFound, AdapterUnavailable) as error:
            outcome = "not_found" if isinstance(error, AdapterNotFound) else "unavailable"
            raise
        except Exception:
            outcome = "error"
            raise
        finally:
            self._metrics.loads.labels(outcome).inc()
            if outcome != "ok":
                log.info("adapter.not_loaded", adapter_id=slot.name, outcome=outcome)
                self._leave(slot)
        took = self._clock() - started
        self._metrics.load_seconds.observe(took)
        log.info("adapter.loaded", adapter_id=slot.name, seconds=round(took, 4))
        return served

    async def _bring(self, slot: _Slot) -> Served:
        """Fetch, find room, read, verify."""
        found = await self._loader.find(slot.name)
        slot.checked_at = self._clock()
        room = self._rooms["full" if found.whole else "adapter"]
        if room.max_bytes is not None and found.size_bytes > room.max_bytes:
            raise AdapterRefused(
                "adapter_too_large",
                f"Adapter {slot.name!r} needs {found.size_bytes} bytes of memory; this server "
                f"keeps {room.max_bytes} for its kind. Ask the operator for more.",
            )
        await room.take(slot, found.size_bytes)
        slot.room = room
        served = await self._loader.read(slot.name, found)
        slot.own = served.model if served.model is not self._base.model else None
        await self._verify(served, found)
        slot.ready = True
        room.changed(slot)
        self._count()
        return served

    async def _verify(self, served: Served, found: Found) -> None:
        """Once for each content: what was equal when it was here before is so again."""
        content = (served.name, found.digest)
        if content in self._verified:
            return
        if served.head is None:
            await self._verifier.check(served, found.probes)
        else:
            await self._score_verifier.check(served, found.scores)
        self._verified[content] = None
        while len(self._verified) > _MAX_VERIFIED:
            self._verified.popitem(last=False)

    async def _recheck(self, slot: _Slot) -> None:
        """Whether the adapter has been deleted since; asked once for all who want to know."""
        if self._clock() - slot.checked_at > _RECHECK_AFTER_S and not slot.deleted:
            if slot.recheck is None:
                slot.recheck = asyncio.create_task(self._ask(slot))
            await asyncio.wait({slot.recheck}, timeout=_RECHECK_WAIT_S)
        if slot.deleted:
            raise AdapterNotFound(slot.name)

    async def _ask(self, slot: _Slot) -> None:
        try:
            await self._loader.fetch(slot.name)
        except AdapterNotFound:
            slot.deleted = True
            self._leave(slot)
        except (AdapterRefused, AdapterUnavailable) as error:
            log.warning("adapter.recheck_failed", adapter_id=slot.name, error=str(error))
        finally:
            slot.checked_at = self._clock()
            slot.recheck = None

    def _refuse(self, name: str, error: AdapterRefused) -> None:
        """Remember it: its content never changes, and trying costs a fetch and forwards."""
        while len(self._refusals) >= _MAX_REFUSALS:
            del self._refusals[next(iter(self._refusals))]
        self._refusals[name] = _Refusal(self._clock(), error.code, str(error))

    def _leave(self, slot: _Slot) -> None:
        """Take the adapter out of memory; those who use it now finish with it."""
        if self._slots.get(slot.name) is slot:
            del self._slots[slot.name]
        if slot.room:
            slot.room.leave(slot)
            self._count()
        if slot.own is not None:
            self._forget_model(slot.own)

    def _forget(self, seat: Seat) -> None:
        """A room turned this one out."""
        assert isinstance(seat, _Slot)
        self._leave(seat)
        self._metrics.evictions.inc()
        log.info("adapter.evicted", adapter_id=seat.name)

    def _count(self) -> None:
        for kind, room in self._rooms.items():
            self._metrics.resident.labels(kind).set(len(room))


def _too_many(limits: str) -> RequestInvalid:
    return RequestInvalid(
        f"This server keeps {limits} in memory; name fewer.",
        param="adapters",
        code="too_many_adapters",
    )
