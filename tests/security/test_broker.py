"""S14: who can write to Redis can wake a worker, and nothing else."""

import json
import time
from collections.abc import Iterator
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.encoder import JSONEncoder

from jobs.queue import ACTOR, BrokerWakeUps, listen, open_broker
from tests import clock
from tests.record import Record

QUEUE = "default"

OURS: dict[str, Any] = {
    "queue_name": QUEUE,
    "actor_name": ACTOR,
    "args": [],
    "kwargs": {},
    "options": {"redis_message_id": "m"},
    "message_id": "m",
    "message_timestamp": 1,
}


def but(**changes: Any) -> bytes:
    return json.dumps(OURS | changes).encode()


def without(name: str) -> bytes:
    return json.dumps({field: value for field, value in OURS.items() if field != name}).encode()


FORGED: dict[str, bytes] = {
    "empty": b"",
    "not JSON": b"{",
    "not UTF-8": b"\xff\xfe\x00",
    "a pickle": b"\x80\x04\x95\x1a" + b"\x00" * 7 + b"\x8c\x02os\x94\x8c\x06system\x94\x93\x94.",
    "a list": b"[]",
    "a number": b"1",
    "null": b"null",
    "nested": b"[" * 100_000,
    "huge": but(args=["x" * (8 << 20)]),
    "another actor": but(actor_name="delete_everything"),
    "arguments": but(args=["job_" + "0" * 24]),
    "named arguments": but(kwargs={"job_id": "job_" + "0" * 24, "attempt": 1}),
    "arguments that are none": but(args=None),
    "another queue": but(queue_name="gpu"),
    "options that are none": but(options=None),
    "options that are a list": but(options=[]),
    "an eta": but(options={"redis_message_id": "m", "eta": 2**62}),
    "a pipeline": but(options={"redis_message_id": "m", "pipe_target": OURS}),
    "callbacks": but(options={"redis_message_id": "m", "on_success": "delete_everything"}),
    "an id that is a list": but(message_id=[]),
    "a name that is an object": but(actor_name={}),
    "no arguments": without("args"),
    "no options": without("options"),
    "another field": but(tenant_id="tn_" + "0" * 24),
}


@pytest.fixture
def calls(redis_url: str) -> Iterator[list[tuple[Any, ...]]]:
    """What a worker's function was called with, while a worker runs."""
    called: list[tuple[Any, ...]] = []
    broker = open_broker(redis_url)
    worker = listen(broker, QUEUE, lambda *arguments: called.append(arguments))
    worker.start()
    yield called
    worker.stop()
    broker.close()


def push(client: "redis.Redis[bytes]", data: bytes, id: str) -> None:
    client.hset(f"dramatiq:{QUEUE}.msgs", id, data)
    client.rpush(f"dramatiq:{QUEUE}", id)


def wait_for(calls: list[tuple[Any, ...]], count: int, timeout_s: float = 60) -> float:
    began = clock.now()
    while len(calls) < count and clock.now() - began < timeout_s:
        time.sleep(0.01)
    return clock.now() - began


def test_forged_messages_do_nothing_and_hold_up_nobody(
    redis_url: str,
    calls: list[tuple[Any, ...]],
    record: Record,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with redis.Redis.from_url(redis_url) as client:
        for number, data in enumerate(FORGED.values()):
            push(client, data, f"forged-{number}")
        BrokerWakeUps(open_broker(redis_url)).wake(QUEUE)
        took_s = wait_for(calls, 1)
        time.sleep(0.3)
        left = client.hlen(f"dramatiq:{QUEUE}.msgs")
    said = capfd.readouterr()
    record("S14", "forged messages that did something", len(calls) - 1, exactly=0)
    record("S14", "forged messages left in the queue", left, exactly=0)
    record("S14", "the wake-up behind them came after", took_s, "s", at_most=2.0)
    assert calls == [()]
    assert "broker.foreign_messages_dropped" in said.out + said.err
    assert "delete_everything" not in said.out + said.err


@pytest.mark.parametrize("name", FORGED)
def test_no_forged_message_stops_the_consumer(
    redis_url: str, calls: list[tuple[Any, ...]], name: str
) -> None:
    with redis.Redis.from_url(redis_url) as client:
        push(client, FORGED[name], "forged")
    BrokerWakeUps(open_broker(redis_url)).wake(QUEUE)
    assert wait_for(calls, 1, 2.5) < 2.5
    assert calls == [()]


def test_what_looks_like_a_wake_up_is_one(redis_url: str, calls: list[tuple[Any, ...]]) -> None:
    """It names nothing and asks for nothing: a worker looks for work, which is harmless."""
    with redis.Redis.from_url(redis_url) as client:
        push(client, but(), "m")
    wait_for(calls, 1)
    assert calls == [()]


def test_messages_are_json_and_nothing_else() -> None:
    assert type(dramatiq.get_encoder()) is JSONEncoder


def test_no_message_has_more_than_the_hint(redis_url: str) -> None:
    BrokerWakeUps(open_broker(redis_url)).wake(QUEUE)
    with redis.Redis.from_url(redis_url) as client:
        (data,) = client.hvals(f"dramatiq:{QUEUE}.msgs")
    message = json.loads(data)
    assert (message["args"], message["kwargs"]) == ([], {})
    assert set(message) == set(OURS)
