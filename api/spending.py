"""Tokens of a request: what it may need is taken from the tenant's day before it begins, what it
has used is settled afterwards.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from api.calls import in_thread
from api.errors import ApiError
from engine.completions import Usage
from jobs.store import Store


class Tab:
    """What one request costs; until it is settled, all that it has reserved."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.begun = False  # from then on, an error does not mean that nothing was spent

    def settle(self, usage: Usage) -> None:
        self.tokens, self.begun = usage.total_tokens, True


@asynccontextmanager
async def spending(store: Store, tenant_id: str, most: int) -> AsyncIterator[Tab]:
    """A request that takes `most` tokens at most. One that is refused costs nothing; one that was
    cut off, so that nobody knows what it came to, costs all of them. Raises QuotaExceeded.
    """
    reserved = await in_thread(store.spending.reserve, tenant_id, most)
    tab = Tab(most)
    try:
        yield tab
    except ApiError:
        tab.tokens = tab.tokens if tab.begun else 0
        raise
    finally:
        with anyio.CancelScope(shield=True):
            await in_thread(store.spending.settle, reserved, tab.tokens)
