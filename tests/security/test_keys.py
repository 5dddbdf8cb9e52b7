"""S3: keys are hashes at rest, look all alike when they are none, and end when they are revoked."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from alembic import command

from api import events
from api.services import Services
from jobs.database import Database
from jobs.keys import SCOPES, hash_key, is_whole, new_key
from jobs.settings import Settings
from jobs.store import Store
from jobs.tables import metadata
from tests import clock
from tests.api.making import spec_for
from tests.record import Record

pytestmark = pytest.mark.anyio


def test_a_key_has_256_random_bits_a_prefix_and_a_checksum(record: Record) -> None:
    keys = {new_key() for _ in range(1000)}
    assert len(keys) == 1000
    for key in keys:
        assert re.fullmatch(r"lk_[A-Za-z0-9_-]{43}[0-9A-Za-z]{6}", key)
        assert is_whole(key)
    record("S3", "random bits of a key", 43 * 6 - 2, "bits", at_least=256)
    key = keys.pop()
    changed = [key[:i] + ("x" if key[i] != "x" else "y") + key[i + 1 :] for i in range(3, len(key))]
    cut = [key[:i] for i in range(len(key))]
    assert not any(map(is_whole, [*changed, *cut, key + "x", "", "lk_", key.upper()]))


async def test_no_key_is_in_the_database_its_log_or_its_dump(
    services: Services, settings: Settings, record: Record
) -> None:
    tenants = services.store.tenants
    tenant_id = tenants.create("ours").id
    keys = [tenants.issue_key(tenant_id, f"key {n}", SCOPES)[0] for n in range(50)]
    with services.store.database.read() as connection:
        dump = "".join(str(connection.execute(t.select()).all()) for t in metadata.sorted_tables)
    at_rest = b"".join(path.read_bytes() for path in settings.data_dir.glob("luthier.db*"))
    pepper = (settings.data_dir / "pepper").read_text()
    for key in keys:
        assert hash_key(key, pepper) in dump
    secrets = [key[8:] for key in keys]  # the first letters are in lists, to tell keys apart
    found = [secret for secret in secrets if secret in dump or secret.encode() in at_rest]
    assert pepper not in dump
    assert pepper.encode() not in at_rest
    record("S3", "of 50 keys, found in the database's files", len(found), exactly=0)


async def test_the_pepper_is_needed_and_for_its_owner_alone(
    services: Services, settings: Settings
) -> None:
    key, _ = services.store.tenants.issue_key(services.store.tenants.create("ours").id, "test")
    other = Store(settings.database, pepper="another")
    assert services.store.tenants.authenticate(key) is not None
    assert other.tenants.authenticate(key) is None
    other.close()
    assert (settings.data_dir / "pepper").stat().st_mode & 0o777 == 0o600


async def test_what_is_no_key_is_answered_alike_whatever_it_is(
    nobody: httpx.AsyncClient, services: Services, record: Record
) -> None:
    tenants = services.store.tenants
    tenant_id = tenants.create("ours").id
    revoked, its = tenants.issue_key(tenant_id, "old")
    tenants.revoke_key(tenant_id, its.id)
    unknown, odd = new_key(), ["lk_short", new_key()[:-1] + "!", "x" * 4000, "lk_" + "\xe9" * 49]
    answers = []
    for key in (unknown, revoked, *odd):
        headers = {"authorization": f"Bearer {key}".encode("latin-1")}
        answers.append(await nobody.get("/jobs", headers=headers))
    ids = [answer.headers.pop("x-request-id") for answer in answers]
    assert len(set(ids)) == len(ids)
    assert {(a.status_code, a.content, tuple(a.headers.items())) for a in answers} == {
        (401, answers[0].content, tuple(answers[0].headers.items()))
    }

    # And they take the same way: no shortcut whose time would tell one from the other.
    asked: list[str] = []
    engine = services.store.database.engine
    sa.event.listen(engine, "before_cursor_execute", lambda *call: asked.append(call[2]))
    ways = []
    for key in (unknown, revoked, *odd):
        asked.clear()
        assert tenants.authenticate(key) is None
        ways.append(tuple(asked))
    assert len(ways[0]) >= 1
    record("S3", "ways that unknown, revoked and malformed keys take", len(set(ways)), exactly=1)


async def test_a_revoked_key_ends_what_it_has_begun(
    client: httpx.AsyncClient,
    nobody: httpx.AsyncClient,
    dataset: dict[str, Any],
    services: Services,
    record: Record,
) -> None:
    tenants = services.store.tenants
    tenant_id = tenants.create("ours").id
    job = (await client.post("/jobs", json=spec_for(dataset))).json()
    key, its = tenants.issue_key(tenant_id, "stream")
    headers = {"authorization": f"Bearer {key}", "accept": "text/event-stream"}
    following = asyncio.create_task(nobody.get(f"/jobs/{job['id']}/events", headers=headers))
    await asyncio.sleep(2 * events.POLL_S)
    assert not following.done()

    tenants.revoke_key(tenant_id, its.id)
    began = clock.now()
    assert (await nobody.get("/jobs", headers=headers)).status_code == 401
    refused_s = clock.now() - began
    await asyncio.wait_for(following, 60)
    ended_s = clock.now() - began

    record("S3", "a revoked key is refused after", refused_s, "s", at_most=1.0)
    record("S3", "its event stream ends after", ended_s, "s", at_most=1.0)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_keys_of_before_there_were_scopes_go_on_working(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    in_file = f"sqlite:///{tmp_path / 'old.db'}"
    url = in_file if kind == "sqlite" else request.getfixturevalue("postgres_url")
    database = Database(url)
    old_key = "lk_" + "A" * 43  # as they were made: no checksum
    with database.write() as connection:
        command.upgrade(database._alembic(connection), "0005")
    with database.write() as connection:
        connection.execute(sa.text("INSERT INTO tenants VALUES ('tn_1', 'ours', 1.0)"))
        connection.execute(
            sa.text(
                "INSERT INTO api_keys (id, tenant_id, name, prefix, key_hash, created_at) "
                "VALUES ('key_1', 'tn_1', 'old', 'lk_AAAAA', :hash, 1.0)"
            ),
            {"hash": hash_key(old_key, "p")},
        )
    database.migrate()
    database.close()

    store = Store(url, pepper="p")
    caller = store.tenants.authenticate(old_key)
    assert caller is not None
    assert (caller.tenant_id, caller.scopes) == ("tn_1", {"read", "write", "generate"})
    (listed,) = store.tenants.keys("tn_1")
    assert listed.scopes == ("read", "write", "generate")
    store.close()


@pytest.mark.parametrize("scopes", [(), ("everything",), ("read", "root")])
async def test_a_key_has_scopes_that_there_are(services: Services, scopes: Any) -> None:
    tenant_id = services.store.tenants.create("ours").id
    with pytest.raises(ValueError, match="read, write, generate, admin"):
        services.store.tenants.issue_key(tenant_id, "odd", scopes)
    assert services.store.tenants.keys(tenant_id) == []


async def test_a_key_without_a_scheme_of_its_own_is_none(
    nobody: httpx.AsyncClient, key_of: Callable[[str], str]
) -> None:
    key = key_of("ours")
    for authorization in (key, f"Token {key}", f"Basic {key}", f"Bearer{key}", f"Bearer {key} x"):
        answer = await nobody.get("/jobs", headers={"authorization": authorization})
        assert answer.status_code == 401, authorization.replace(key, "...")
