"""Wake-up messages over dramatiq. A message says "look for work", never which: the table knows."""

import dataclasses
import json
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
# A wake-up in Redis: these fields, and it is never large.
OURS = {field.name for field in dataclasses.fields(dramatiq.Message)}
MESSAGE_BYTES = 1024


class StrictRedisBroker(RedisBroker):
    """Reads nothing but wake-ups as we write them; whatever else is in a queue is thrown away.

    Who can write to Redis is trusted with no more than a hint. dramatiq itself would stop over what
    it cannot decode, and again each time that it comes back.
    """

    def do_fetch(self, queue_name: str, count: int) -> list[bytes]:
        fetched = self._dispatch("fetch")(queue_name, count)  # type: ignore[no-untyped-call]  # dramatiq does not type it
        foreign = [data for data in fetched if not _is_ours(data, queue_name)]
        if not foreign:
            return list(fetched)
        log.warning("broker.foreign_messages_dropped", queue=queue_name, count=len(foreign))
        self._forget(queue_name, foreign)
        return [data for data in fetched if data not in foreign]

    def _forget(self, queue_name: str, foreign: list[bytes]) -> None:
        """They have no id that could be trusted, so they are found by what they are."""
        messages = f"{self.namespace}:{queue_name}.msgs"
        taken = f"{self.namespace}:__acks__.{self.broker_id}.{queue_name}"
        for id, data in self.client.hscan_iter(messages, count=100):
            if data in foreign:
                self.client.hdel(messages, id)
                self.client.srem(taken, id)


def _is_ours(data: bytes | None, queue_name: str) -> bool:
    if data is None or len(data) > MESSAGE_BYTES:
        return False
    try:
        message = json.loads(data)
        ours = set(message) == OURS and set(message["options"]) == {"redis_message_id"}
    except (ValueError, RecursionError, TypeError):
        return False
    return (
        ours
        and all(isinstance(message[name], str) for name in ("message_id", "actor_name"))
        and isinstance(message["options"]["redis_message_id"], str)
        and isinstance(message["message_timestamp"], int)
        and (message["actor_name"], message["queue_name"]) == (ACTOR, queue_name)
        and (message["args"], message["kwargs"]) == ([], {})
    )


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
    return StrictRedisBroker(  # type: ignore[no-untyped-call]  # dramatiq does not type it
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
