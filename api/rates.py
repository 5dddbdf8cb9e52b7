"""How often somebody may call: so many a minute, in one burst or evenly, by the generic cell rate
algorithm. In Redis where there is one, so that several API processes count together.
"""

import time
from collections.abc import Callable
from typing import Any, Protocol

import redis.asyncio
import structlog
from redis.exceptions import RedisError

log = structlog.get_logger()

MINUTE_S = 60.0
AWAY_S = 1.0  # Redis is not asked again for so long after it did not answer
TIMEOUT_S = 0.5
CONNECTIONS = 8
BURST_S = 5.0  # for one of them, where many calls come at once
FORGET_AT = 10_000

# One number a caller: when its allowance would be whole again. Redis' own clock, so that the
# clocks of several machines do not matter.
TAKE = """
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local step = 60 / tonumber(ARGV[1])
local whole = math.max(tonumber(redis.call('GET', KEYS[1]) or now), now)
local wait = whole + step - now - 60
if wait > 0.000001 then return tostring(wait) end
redis.call('SET', KEYS[1], string.format('%.6f', whole + step), 'EX', 61)
return '0'
"""


class Rates(Protocol):
    async def take(self, who: str, per_minute: int) -> float:
        """Count one call: 0, or the seconds after which it would be let through. 0 a minute is
        no limit.
        """
        ...

    async def close(self) -> None: ...


class LocalRates:
    """Counts in this process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._whole_at: dict[str, float] = {}

    async def take(self, who: str, per_minute: int) -> float:
        if not per_minute:
            return 0.0
        now = self._clock()
        step = MINUTE_S / per_minute
        whole_at = max(self._whole_at.get(who, now), now)
        wait_s = whole_at + step - now - MINUTE_S
        if wait_s > 1e-6:
            return wait_s
        if len(self._whole_at) >= FORGET_AT:
            self._whole_at = {k: at for k, at in self._whole_at.items() if at > now}
        self._whole_at[who] = whole_at + step
        return 0.0

    async def close(self) -> None:
        pass


class RedisRates:
    """Counts in Redis; while that is away, in this process, so that a limit stays a limit."""

    def __init__(self, url: str, timeout_s: float = TIMEOUT_S) -> None:
        # A few connections for all requests: a burst must not open one for each of its calls.
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            url,
            max_connections=CONNECTIONS,
            timeout=BURST_S,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
        )
        self._redis = redis.asyncio.Redis.from_pool(pool)
        self._take: Any = self._redis.register_script(TAKE)
        self._meanwhile = LocalRates()
        self._away_until = 0.0

    async def take(self, who: str, per_minute: int) -> float:
        if not per_minute:
            return 0.0
        if time.monotonic() >= self._away_until:
            try:
                return float(await self._take(keys=[f"luthier:rate:{who}"], args=[per_minute]))
            except (RedisError, OSError) as error:
                self._away_until = time.monotonic() + AWAY_S
                log.warning("rates.counted_here", error=type(error).__name__)
        return await self._meanwhile.take(who, per_minute)

    async def close(self) -> None:
        await self._redis.aclose()


def open_rates(url: str) -> Rates:
    """In Redis for a `redis://` URL; in this process for an empty one."""
    return RedisRates(url) if url else LocalRates()
