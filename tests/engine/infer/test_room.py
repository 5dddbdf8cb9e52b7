"""Room for adapters: who leaves, who waits, and that nobody waits for ever."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from engine.infer.room import Room, Seat


class Visitor(Seat):
    """A seat that is told when it is put out."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.out = name, False


def room_of(seats: int, max_bytes: int | None = None) -> Room:
    def evict(seat: Seat) -> None:
        assert isinstance(seat, Visitor)
        seat.out = True

    return Room(seats, max_bytes, evict)


async def seated(room: Room, name: str, size_bytes: int = 1, pins: int = 0) -> Visitor:
    visitor = Visitor(name)
    await room.take(visitor, size_bytes)
    visitor.ready, visitor.pins = True, pins
    room.changed(visitor)
    return visitor


async def waits(coroutine: Coroutine[Any, Any, Visitor]) -> asyncio.Task[Visitor]:
    """Start it and see that it cannot go on."""
    task = asyncio.create_task(coroutine)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()
    return task


def unpin(room: Room, seat: Seat) -> None:
    seat.pins -= 1
    room.changed(seat)


def test_the_one_touched_longest_ago_leaves_first() -> None:
    async def scene() -> None:
        room = room_of(2)
        first, second = await seated(room, "first"), await seated(room, "second")
        room.touch(first)
        await seated(room, "third")
        assert (first.out, second.out, len(room)) == (False, True, 2)

    asyncio.run(scene())


def test_as_many_leave_as_the_bytes_need() -> None:
    async def scene() -> None:
        room = room_of(9, max_bytes=10)
        small = [await seated(room, str(number), 3) for number in range(3)]
        await seated(room, "large", 6)
        assert [seat.out for seat in small] == [True, True, False]

    asyncio.run(scene())


def test_one_that_is_loading_or_in_use_is_not_taken_from() -> None:
    async def scene() -> None:
        room = room_of(2)
        loading = Visitor("loading")
        await room.take(loading, 1)
        busy = await seated(room, "busy", pins=1)
        task = await waits(seated(room, "new"))
        assert busy.out  # it gets no new users, but it keeps its room
        assert len(room) == 2
        unpin(room, busy)
        await task
        assert not loading.out

    asyncio.run(scene())


def test_a_seat_that_is_always_busy_cannot_keep_others_out() -> None:
    async def scene() -> None:
        room = room_of(1)
        busy = await seated(room, "busy", pins=2)
        task = await waits(seated(room, "new"))
        unpin(room, busy)
        await asyncio.sleep(0)
        assert not task.done()
        unpin(room, busy)
        assert (await task).name == "new"

    asyncio.run(scene())


def test_those_who_wait_are_served_in_order() -> None:
    async def scene() -> None:
        room = room_of(1)
        busy = await seated(room, "busy", pins=1)
        order: list[str] = []

        async def come(name: str) -> Visitor:
            visitor = await seated(room, name)
            order.append(name)
            return visitor

        tasks = [await waits(come(name)) for name in "abc"]
        unpin(room, busy)
        await asyncio.gather(*tasks)
        assert order == ["a", "b", "c"]

    asyncio.run(scene())


def test_a_load_that_fails_gives_its_room_back() -> None:
    async def scene() -> None:
        room = room_of(1)
        failing = Visitor("failing")
        failing.pins = 1  # someone waits for it
        await room.take(failing, 1)
        task = await waits(seated(room, "new"))
        room.leave(failing)
        unpin(room, failing)
        await task
        assert len(room) == 1

    asyncio.run(scene())
