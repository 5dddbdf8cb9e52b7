"""Where a blocking call runs: in a thread, unless it is so short that the hop costs more."""

from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

import anyio
import anyio.to_thread

from jobs.store import Store

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Writes, files and whatever else may wait. A cancelled request lets the call end first."""
    return await anyio.to_thread.run_sync(partial(call, *args, **kwargs))


async def read(store: Store, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """One of the store's reads: microseconds in SQLite, a journey to PostgreSQL."""
    if store.database.dialect == "sqlite":
        return call(*args, **kwargs)
    return await in_thread(call, *args, **kwargs)
