"""Keys: what is no key of ours is one and the same 401."""

from collections.abc import Callable

import httpx
import pytest

from api.services import Services

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer ", "Bearer lk_unknown", "Basic bGs6", "lk_bare", "Bearer \xff\xfe"],
)
async def test_a_bad_key_is_refused_without_saying_why(
    nobody: httpx.AsyncClient, authorization: str
) -> None:
    headers = {"authorization": authorization.encode("latin-1")} if authorization else {}
    answer = await nobody.get("/jobs", headers=headers)
    bare = await nobody.get("/jobs")
    assert (answer.status_code, answer.content) == (401, bare.content)
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["type"] == "authentication_error"


async def test_the_scheme_is_read_in_any_case(
    nobody: httpx.AsyncClient, key_of: Callable[[str], str]
) -> None:
    answer = await nobody.get("/jobs", headers={"authorization": f"bearer {key_of('ours')}"})
    assert answer.status_code == 200


async def test_a_revoked_key_is_refused_at_once(
    nobody: httpx.AsyncClient, services: Services
) -> None:
    tenants = services.store.tenants
    tenant = tenants.create("ours")
    key, record = tenants.issue_key(tenant.id, "test")
    headers = {"authorization": f"Bearer {key}"}
    assert (await nobody.get("/jobs", headers=headers)).status_code == 200

    tenants.revoke_key(tenant.id, record.id)

    assert (await nobody.get("/jobs", headers=headers)).status_code == 401


async def test_a_key_is_asked_for_before_the_body_is_looked_at(nobody: httpx.AsyncClient) -> None:
    answer = await nobody.post(
        "/jobs", content=b"{" * 2_000_000, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 401
