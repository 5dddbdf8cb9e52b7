"""Requests that are sent again: with an Idempotency-Key the first answer is given again."""

import hashlib
import json
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import Header

from jobs.idempotency import Idempotency
from jobs.model import Record

R = TypeVar("R", bound=Record)

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="The same key and body again give the same job and the same answer.",
    ),
]


def hash_of(meant: dict[str, Any]) -> str:
    """Equal for bodies that mean the same, whatever their spelling."""
    return hashlib.sha256(json.dumps(meant, sort_keys=True).encode()).hexdigest()


def once(
    idempotency: Idempotency | None,
    answered: Callable[[Idempotency], R | None],
    make: Callable[[Idempotency | None], R],
) -> R:
    """What the first request was answered, without a look at what has changed since, or a new one.

    `make` gives way to whoever came first where several arrive at once. Raises IdempotencyReused.
    """
    if idempotency is not None and (first := answered(idempotency)) is not None:
        return first
    return make(idempotency)


def by_key(key: str | None, meant: dict[str, Any]) -> Idempotency | None:
    """Of a request whose body means this; None where its client sent no key."""
    return Idempotency(key, hash_of(meant)) if key else None


def by_body(meant: dict[str, Any], window_s: float) -> Idempotency:
    """Of a request whose client sends no key, but may send it again after a timeout.

    No client can send this key: it has spaces in it.
    """
    meaning = hash_of(meant)
    return Idempotency(f"same body {meaning}", meaning, window_s)
