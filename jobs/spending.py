"""Tokens that a tenant spends in a day, by the database's clock in UTC."""

from dataclasses import dataclass

import sqlalchemy as sa

from jobs.database import Database
from jobs.errors import QuotaExceeded
from jobs.quotas import Quotas, hold, quotas_of
from jobs.tables import now, token_days

DAY_S = 86_400


@dataclass(frozen=True)
class Reservation:
    """Tokens that a request may spend, taken from the day's before it begins."""

    tenant_id: str
    day: int
    tokens: int


class Spending:
    def __init__(self, database: Database, defaults: Quotas) -> None:
        self._db, self._defaults = database, defaults

    def reserve(self, tenant_id: str, tokens: int) -> Reservation | None:
        """Take what a request may need at most; None where the tenant has no limit.

        Raises QuotaExceeded, which says when the day ends. `settle` gives back what was not used.
        """
        with self._db.read() as connection:
            if not quotas_of(connection, tenant_id, self._defaults).max_tokens_per_day:
                return None
        with self._db.write() as connection:
            hold(connection, tenant_id)
            most = quotas_of(connection, tenant_id, self._defaults).max_tokens_per_day
            clock = float(connection.scalar(sa.select(now())) or 0.0)
            day = int(clock // DAY_S)
            spent = connection.scalar(_of(tenant_id, day)) or 0
            if most and spent + tokens > most:
                raise QuotaExceeded(
                    f"{spent:,} of at most {most:,} tokens are spent today, and this request may "
                    f"take {tokens:,} more; lower `max_tokens`, or wait for the next day (UTC).",
                    retry_after_s=(day + 1) * DAY_S - clock,
                    passes=False,
                )
            _add(connection, tenant_id, day, tokens)
        return Reservation(tenant_id, day, tokens)

    def settle(self, reservation: Reservation | None, used: int) -> None:
        """What the request has really spent."""
        if reservation is None or used == reservation.tokens:
            return
        with self._db.write() as connection:
            hold(connection, reservation.tenant_id)
            more = used - reservation.tokens
            _add(connection, reservation.tenant_id, reservation.day, more)

    def today(self, tenant_id: str) -> int:
        """Spent so far, with what is reserved; 0 for a tenant without a limit."""
        with self._db.read() as connection:
            clock = float(connection.scalar(sa.select(now())) or 0.0)
            return connection.scalar(_of(tenant_id, int(clock // DAY_S))) or 0


def _of(tenant_id: str, day: int) -> sa.Select[int]:
    return sa.select(token_days.c.tokens).where(
        token_days.c.tenant_id == tenant_id, token_days.c.day == day
    )


def _add(connection: sa.Connection, tenant_id: str, day: int, tokens: int) -> None:
    """The caller holds the tenant."""
    mine = sa.and_(token_days.c.tenant_id == tenant_id, token_days.c.day == day)
    more = token_days.update().where(mine).values(tokens=token_days.c.tokens + tokens)
    if connection.execute(more).rowcount == 0:
        values = {"tenant_id": tenant_id, "day": day, "tokens": max(0, tokens)}
        connection.execute(token_days.insert().values(values))
