"""Wake-up messages over dramatiq. A message says "look for work", never which: the table knows."""

from collections.abc import Callable
from typing import Protocol

import dramatiq
import structlog
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.errors import DramatiqError
from redis.exceptions import RedisError

log = structlog.get_logger()

ACTOR = "wake"
# A killed worker's messages are given out again after seconds instead of minutes.
HEARTBEAT_MS = 5_000
MAINTENANCE_CHANCE = 1_000_000


class WakeUps(Protocol):
    """Best effort: what gets lost here, the sweep sends again."""

    def wake(self, queue: str) -> None: ...

    def waiting(self, queue: str) -> int: ...


class BrokerWakeUps:
    """Wake-ups through a dramatiq broker."""

    def __init__(self, broker: dramatiq.Broker) -> None:
        self._broker = broker

    def wake(self, queue: str) -> None:
        """Send one; a broker that is down is logged, not raised."""
        try:
            self._broker.declare_queue(queue)
            self._broker.enqueue(
                dramatiq.Message(queue_name=queue, actor_name=ACTOR, args=(), kwargs={}, options={})
            )
        except (DramatiqError, RedisError, OSError) as error:
            log.warning("broker.wake_failed", queue=queue, error=type(error).__name__)

    def waiting(self, queue: str) -> int:
        """Messages that no worker has taken yet. Raises ConnectionError without a broker."""
        try:
            if isinstance(self._broker, RedisBroker):
                return int(self._broker.do_qsize(queue))
            return int(self._broker.queues[queue].qsize()) if queue in self._broker.queues else 0
        except (DramatiqError, RedisError, OSError) as error:
            raise ConnectionError(f"The broker does not answer: {type(error).__name__}.") from error


class NoWakeUps:
    """Where the broker lives inside the worker: other processes have none to send through."""

    def wake(self, queue: str) -> None:
        pass

    def waiting(self, queue: str) -> int:
        return 0


def open_broker(url: str) -> dramatiq.Broker:
    """Redis for a `redis://` URL; in this process for an empty one.

    None of dramatiq's default middleware: its limits of time and retries are for short tasks.
    """
    if not url:
        return StubBroker(middleware=[])
    return RedisBroker(  # type: ignore[no-untyped-call]  # dramatiq does not type it
        url=f"{url}{'&' if '?' in url else '?'}socket_connect_timeout=1&socket_timeout=30",
        middleware=[],
        heartbeat_timeout=HEARTBEAT_MS,
        maintenance_chance=MAINTENANCE_CHANCE,
    )


def open_wakeups(url: str) -> WakeUps:
    """What a role that only sends is given."""
    return BrokerWakeUps(open_broker(url)) if url else NoWakeUps()


def listen(broker: dramatiq.Broker, queue: str, work: Callable[[], None]) -> dramatiq.Worker:
    """Call `work` in a thread at every wake-up; the caller starts and stops the worker."""

    def wake() -> None:
        work()

    dramatiq.actor(actor_name=ACTOR, queue_name=queue, broker=broker)(wake)
    return dramatiq.Worker(broker, queues={queue}, worker_timeout=100, worker_threads=1)
