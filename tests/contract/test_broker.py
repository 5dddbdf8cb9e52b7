"""One suite over both brokers: a wake-up is a hint, and losing all of them loses nothing."""

import threading
from collections.abc import Callable, Iterator

import dramatiq
import pytest
import redis

from jobs.queue import BrokerWakeUps, NoWakeUps, listen, open_broker, open_wakeups
from jobs.sweep import Sweep
from tests import clock
from tests.servers import valkey

QUEUE = "default"


@pytest.fixture(params=["in-process", "redis"])
def broker_url(request: pytest.FixtureRequest) -> str:
    if request.param == "in-process":
        return ""
    url: str = request.getfixturevalue("redis_url")
    return url


@pytest.fixture
def broker(broker_url: str) -> Iterator[dramatiq.Broker]:
    opened = open_broker(broker_url)
    yield opened
    opened.close()


class Bell:
    """Counts how often it was rung."""

    def __init__(self) -> None:
        self.rings = 0
        self._rung = threading.Condition()

    def ring(self) -> None:
        with self._rung:
            self.rings += 1
            self._rung.notify_all()

    def wait(self, rings: int, timeout_s: float = 60) -> bool:
        with self._rung:
            return self._rung.wait_for(lambda: self.rings >= rings, timeout_s)


class Waiting:
    """The part of the jobs table that a sweep looks at."""

    def __init__(self, queued: int) -> None:
        self.jobs, self.leases, self.pipelines = queued, self, None

    def queued(self, queue: str) -> int:
        return self.jobs


@pytest.fixture
def work(broker: dramatiq.Broker) -> Iterator[Callable[[Callable[[], None]], None]]:
    workers: list[dramatiq.Worker] = []

    def start(function: Callable[[], None]) -> None:
        worker = listen(broker, QUEUE, function)
        workers.append(worker)
        worker.start()

    yield start
    for worker in workers:
        worker.stop()


def test_a_wake_up_reaches_a_worker(
    broker: dramatiq.Broker, work: Callable[[Callable[[], None]], None]
) -> None:
    bell = Bell()
    work(bell.ring)
    wakeups = BrokerWakeUps(broker)
    for _ in range(3):
        wakeups.wake(QUEUE)
    assert bell.wait(3)


def test_what_nobody_took_is_counted(broker: dramatiq.Broker) -> None:
    wakeups = BrokerWakeUps(broker)
    assert wakeups.waiting(QUEUE) == 0
    for _ in range(4):
        wakeups.wake(QUEUE)
    assert wakeups.waiting(QUEUE) == 4


def test_the_sweep_sends_as_many_as_are_missing_and_no_more(broker: dramatiq.Broker) -> None:
    wakeups = BrokerWakeUps(broker)
    sweep = Sweep(Waiting(5), wakeups, QUEUE, expire_s=5, wake_s=5)  # type: ignore[arg-type]  # all it needs
    wakeups.wake(QUEUE)
    for _ in range(3):
        sweep.wake()
    assert wakeups.waiting(QUEUE) == 5


def test_a_flushed_broker_is_filled_again_by_the_next_sweep(redis_url: str) -> None:
    wakeups = open_wakeups(redis_url)
    sweep = Sweep(Waiting(100), wakeups, QUEUE, expire_s=5, wake_s=5)  # type: ignore[arg-type]  # all it needs
    sweep.wake()
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    assert wakeups.waiting(QUEUE) == 0
    sweep.wake()
    assert wakeups.waiting(QUEUE) == 100


def test_a_broker_that_is_down_costs_the_client_nothing_and_comes_back() -> None:
    with valkey() as url:
        wakeups = open_wakeups(url)
        wakeups.wake(QUEUE)
        port = int(url.rsplit(":", 1)[1].split("/")[0])
    asked = clock.now()
    wakeups.wake(QUEUE)
    assert clock.now() - asked < 1.0
    with pytest.raises(ConnectionError):
        wakeups.waiting(QUEUE)
    with valkey(port):
        wakeups.wake(QUEUE)
        assert wakeups.waiting(QUEUE) == 1


def test_other_processes_have_nothing_to_send_where_the_broker_is_in_the_worker() -> None:
    wakeups = open_wakeups("")
    assert isinstance(wakeups, NoWakeUps)
    wakeups.wake(QUEUE)
    assert wakeups.waiting(QUEUE) == 0
