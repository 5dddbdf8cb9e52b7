"""The sweep's thread: it goes on, whatever happens to one round."""

import time
from collections.abc import Callable

from jobs.sweep import Sweep
from tests.workers import House, conversations


class BrokenOnce:
    """Wake-ups that fail in a way nobody thought of, and work from then on."""

    def __init__(self) -> None:
        self.broken, self.woken = False, 0

    def wake(self, queue: str) -> None:
        self.woken += 1

    def waiting(self, queue: str) -> int:
        if not self.broken:
            self.broken = True
            raise KeyError(queue)
        return 0


def test_a_sweep_that_fails_is_not_the_last(make_house: Callable[..., House]) -> None:
    house = make_house()
    house.submit(house.add_dataset(conversations(3)))
    wakeups = BrokenOnce()
    sweep = Sweep(house.store.leases, wakeups, "default", expire_s=1.0, wake_s=0.01)
    sweep.start()
    deadline = time.monotonic() + 10
    while not wakeups.woken and time.monotonic() < deadline:
        time.sleep(0.01)
    sweep.close()
    assert wakeups.broken
    assert wakeups.woken
