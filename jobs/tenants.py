"""Tenants and their API keys. A key is stored as a keyed hash and shown once."""

from collections.abc import Iterable
from dataclasses import dataclass

import sqlalchemy as sa

from jobs.audit import note
from jobs.database import Database
from jobs.errors import NotFound
from jobs.keys import SHOWN, USUAL, hash_key, new_key, stored_scopes
from jobs.model import ApiKey, Tenant, new_id
from jobs.quotas import DEFAULTS, NAMES, Quotas, merged
from jobs.tables import api_keys, now, tenant_quotas, tenants


@dataclass(frozen=True)
class Caller:
    """Who is behind a key, what the key may do, and the limits that hold for its tenant."""

    tenant_id: str
    key_id: str
    scopes: frozenset[str]
    quotas: Quotas


# Made once: every request asks it.
BEHIND_A_KEY = (
    sa.select(
        api_keys.c.id,
        api_keys.c.tenant_id,
        api_keys.c.scopes,
        *(tenant_quotas.c[name] for name in NAMES),
    )
    .outerjoin(tenant_quotas, tenant_quotas.c.tenant_id == api_keys.c.tenant_id)
    .where(api_keys.c.key_hash == sa.bindparam("hash"), api_keys.c.revoked_at.is_(None))
)


class Tenants:
    def __init__(self, database: Database, pepper: str, defaults: Quotas = DEFAULTS) -> None:
        self._db, self._pepper, self._defaults = database, pepper, defaults

    def create(self, name: str) -> Tenant:
        """A tenant by this name: a new one, or the one that is there."""
        with self._db.write() as connection:
            found = connection.execute(sa.select(tenants).where(tenants.c.name == name))
            row = found.mappings().first()
            if row is None:
                values = {"id": new_id("tn"), "name": name, "created_at": now()}
                query = tenants.insert().values(values).returning(tenants)
                row = connection.execute(query).mappings().one()
                note(connection, row["id"], "tenant.create", row["id"])
        return Tenant.model_validate(dict(row))

    def find(self, name: str) -> Tenant:
        """The tenant by this name. Raises NotFound."""
        query = sa.select(tenants).where(tenants.c.name == name)
        with self._db.read() as connection:
            row = connection.execute(query).mappings().first()
        if row is None:
            raise NotFound("tenant", name)
        return Tenant.model_validate(dict(row))

    def issue_key(
        self, tenant_id: str, name: str, scopes: Iterable[str] = USUAL
    ) -> tuple[str, ApiKey]:
        """A new key of 256 random bits: the text, seen this once, and its record.

        Raises NotFound, and ValueError for scopes that there are not.
        """
        key = new_key()
        with self._db.write() as connection:
            if connection.scalar(sa.select(tenants.c.id).where(tenants.c.id == tenant_id)) is None:
                raise NotFound("tenant", tenant_id)
            values = {
                "id": new_id("key"),
                "tenant_id": tenant_id,
                "name": name,
                "prefix": key[:SHOWN],
                "key_hash": hash_key(key, self._pepper),
                "scopes": stored_scopes(scopes),
                "created_at": now(),
            }
            row = connection.execute(api_keys.insert().values(values).returning(api_keys))
            record = _key(row.mappings().one())
            note(connection, tenant_id, "key.create", record.id)
            return key, record

    def authenticate(self, key: str) -> Caller | None:
        """Who is behind a key, or None for one that is unknown, malformed or revoked.

        Every key is looked up, also one whose checksum is wrong: all that is no key of ours takes
        the same way and the same time.
        """
        with self._db.read() as connection:
            found = connection.execute(BEHIND_A_KEY, {"hash": hash_key(key, self._pepper)})
            row = found.mappings().first()
        if row is None:
            return None
        return Caller(
            tenant_id=row["tenant_id"],
            key_id=row["id"],
            scopes=frozenset(row["scopes"].split()),
            quotas=merged(row, self._defaults),
        )

    def is_valid(self, key_id: str) -> bool:
        """Whether a key that was found once still is one."""
        query = sa.select(api_keys.c.id).where(
            api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None)
        )
        with self._db.read() as connection:
            return connection.scalar(query) is not None

    def keys(self, tenant_id: str) -> list[ApiKey]:
        query = sa.select(api_keys).where(api_keys.c.tenant_id == tenant_id)
        with self._db.read() as connection:
            rows = connection.execute(query.order_by(api_keys.c.created_at)).mappings()
            return [_key(row) for row in rows]

    def revoke_key(self, tenant_id: str, key_id: str) -> None:
        """Raises NotFound when the tenant has no such key; revoking twice is revoking once."""
        query = (
            api_keys.update()
            .where(api_keys.c.tenant_id == tenant_id, api_keys.c.id == key_id)
            .values(revoked_at=sa.func.coalesce(api_keys.c.revoked_at, now()))
        )
        with self._db.write() as connection:
            if connection.execute(query).rowcount == 0:
                raise NotFound("key", key_id)
            note(connection, tenant_id, "key.revoke", key_id)


def _key(row: sa.RowMapping) -> ApiKey:
    values = {name: value for name, value in row.items() if name != "key_hash"}
    return ApiKey.model_validate(values | {"scopes": tuple(row["scopes"].split())})
