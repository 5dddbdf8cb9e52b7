"""Room in memory for so many adapters or bytes; nobody in use is put out."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection


class Seat:
    """Something that takes room. Pinned while anyone uses it; not `ready` while it is loading."""

    def __init__(self) -> None:
        self.pins = 0
        self.ready = False
        self.size_bytes = 0


class Room:
    """Seats in order of last use. Lives on the event loop.

    Whoever finds it full waits in line, and the least recently used seat gets no new users from
    then on (`evict` is told), so that a busy seat cannot keep others out for ever.
    """

    def __init__(
        self, max_seats: int, max_bytes: int | None, evict: Callable[[Seat], None]
    ) -> None:
        self.max_bytes = max_bytes
        self._max_seats, self._evict = max_seats, evict
        self._seated: OrderedDict[Seat, None] = OrderedDict()
        self._leaving: set[Seat] = set()
        self._line = asyncio.Lock()
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._seated) + len(self._leaving)

    @property
    def limits(self) -> str:
        most = f"{self._max_seats} adapters"
        return most if self.max_bytes is None else f"{most} or {self.max_bytes} bytes of them"

    def could_seat(self, sizes: Collection[int]) -> bool:
        """Whether seats of these sizes could be there at once."""
        enough = self.max_bytes is None or sum(sizes) <= self.max_bytes
        return len(sizes) <= self._max_seats and enough

    async def take(self, seat: Seat, size_bytes: int) -> None:
        """Seat it, once there is room. Its size must be within max_bytes."""
        seat.size_bytes = size_bytes
        async with self._line:
            while not self._fits(size_bytes):
                if not self._turn_out():
                    self._changed.clear()
                    await self._changed.wait()
            self._seated[seat] = None

    def leave(self, seat: Seat) -> None:
        """Give its room back, now or when its last user is done."""
        if seat in self._seated:
            del self._seated[seat]
            if seat.pins:
                self._leaving.add(seat)
        self._changed.set()

    def touch(self, seat: Seat) -> None:
        if seat in self._seated:
            self._seated.move_to_end(seat)

    def changed(self, seat: Seat) -> None:
        """Its pins or its readiness changed."""
        if not seat.pins:
            self._leaving.discard(seat)
        self._changed.set()

    def _fits(self, size_bytes: int) -> bool:
        taken = sum(seat.size_bytes for seat in (*self._seated, *self._leaving))
        enough = self.max_bytes is None or taken + size_bytes <= self.max_bytes
        return len(self) < self._max_seats and enough

    def _turn_out(self) -> bool:
        """Put out the idle seat that was used longest ago, or tell a busy one to leave when done.

        True: there may be room now.
        """
        ready = [seat for seat in self._seated if seat.ready]
        victim = next((seat for seat in ready if not seat.pins), None)
        if victim is None and ready and not self._leaving:
            victim = ready[0]
        if victim is None:
            return False
        self.leave(victim)
        self._evict(victim)
        return not victim.pins
