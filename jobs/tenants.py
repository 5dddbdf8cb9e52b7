"""Tenants and their API keys. A key is stored as a keyed hash and shown once."""

import hashlib
import hmac
import secrets

import sqlalchemy as sa

from jobs.database import Database
from jobs.errors import NotFound
from jobs.model import ApiKey, Tenant, new_id
from jobs.tables import api_keys, now, tenants

KEY_PREFIX = "lk_"


def hash_key(key: str, pepper: str) -> str:
    """HMAC-SHA-256 of a key under the service's pepper, as hex."""
    return hmac.new(pepper.encode(), key.encode(errors="replace"), hashlib.sha256).hexdigest()


class Tenants:
    def __init__(self, database: Database, pepper: str) -> None:
        self._db, self._pepper = database, pepper

    def create(self, name: str) -> Tenant:
        """A tenant by this name: a new one, or the one that is there."""
        with self._db.write() as connection:
            found = connection.execute(sa.select(tenants).where(tenants.c.name == name))
            row = found.mappings().first()
            if row is None:
                values = {"id": new_id("tn"), "name": name, "created_at": now()}
                query = tenants.insert().values(values).returning(tenants)
                row = connection.execute(query).mappings().one()
        return Tenant.model_validate(dict(row))

    def find(self, name: str) -> Tenant:
        """The tenant by this name. Raises NotFound."""
        query = sa.select(tenants).where(tenants.c.name == name)
        with self._db.read() as connection:
            row = connection.execute(query).mappings().first()
        if row is None:
            raise NotFound("tenant", name)
        return Tenant.model_validate(dict(row))

    def issue_key(self, tenant_id: str, name: str) -> tuple[str, ApiKey]:
        """A new key of 256 random bits: the text, seen this once, and its record."""
        key = KEY_PREFIX + secrets.token_urlsafe(32)
        with self._db.write() as connection:
            if connection.scalar(sa.select(tenants.c.id).where(tenants.c.id == tenant_id)) is None:
                raise NotFound("tenant", tenant_id)
            values = {
                "id": new_id("key"),
                "tenant_id": tenant_id,
                "name": name,
                "prefix": key[:8],
                "key_hash": hash_key(key, self._pepper),
                "created_at": now(),
            }
            row = connection.execute(api_keys.insert().values(values).returning(api_keys))
            return key, _key(row.mappings().one())

    def authenticate(self, key: str) -> str | None:
        """The tenant's id behind a key, or None for one that is unknown, malformed or revoked."""
        query = sa.select(api_keys.c.tenant_id).where(
            api_keys.c.key_hash == hash_key(key, self._pepper), api_keys.c.revoked_at.is_(None)
        )
        with self._db.read() as connection:
            tenant_id: str | None = connection.scalar(query)
        return tenant_id

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


def _key(row: sa.RowMapping) -> ApiKey:
    return ApiKey.model_validate({k: v for k, v in row.items() if k != "key_hash"})
