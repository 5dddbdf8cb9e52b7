"""S2, S3: nothing without a key, and with a key only what its scopes say, on every route."""

from collections.abc import Callable

import httpx
import pytest
from fastapi import FastAPI

from api.app import create_app, routes
from api.bodies import StrictRoute
from api.docs import PAGES
from api.scopes import OPEN, SCOPES
from api.services import Services
from jobs.keys import SCOPES as ALL
from jobs.keys import Scope
from tests.record import Record
from tests.security.conftest import Operation

pytestmark = pytest.mark.anyio

UNKNOWN = {"{id}": "job_" + "0" * 24, "{checkpoint_id}": "ck_" + "0" * 24}


def url_of(operation: Operation) -> str:
    url = operation.path
    for slot, id in UNKNOWN.items():
        url = url.replace(slot, id)
    assert "{" not in url, f"a new kind of id: {url}"
    return url


def with_scopes(app: FastAPI, services: Services, *scopes: Scope) -> httpx.AsyncClient:
    tenants = services.store.tenants
    key, _ = tenants.issue_key(tenants.create("ours").id, "test", scopes)
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app),
        base_url="http://luthier.test",
        headers={"authorization": f"Bearer {key}"},
    )


async def test_every_route_has_its_scope_and_every_scope_its_route(
    operations: list[Operation],
) -> None:
    assert {str(operation) for operation in operations} == set(SCOPES)
    unguarded = {route.path for route in routes() if not isinstance(route, StrictRoute)}
    assert unguarded == {"/docs"}


async def test_only_the_two_health_routes_are_open(
    nobody: httpx.AsyncClient, operations: list[Operation], record: Record
) -> None:
    answers = {str(o): await nobody.request(o.method, url_of(o)) for o in operations}
    let_in = {route for route, answer in answers.items() if answer.status_code != 401}
    assert {route.partition(" ")[2] for route in let_in} == OPEN == {"/healthz", "/readyz"}
    assert len({a.content for r, a in answers.items() if r not in let_in}) == 1
    record("S2", "operations asked without a key", len(answers), at_least=36)
    record("S2", "of them open", sorted(let_in), exactly=["GET /healthz", "GET /readyz"])


async def test_the_documentation_can_be_closed_too(services: Services) -> None:
    services.settings = services.settings.model_copy(update={"public_docs": False})
    transport = httpx.ASGITransport(create_app(services))
    async with httpx.AsyncClient(transport=transport, base_url="http://luthier.test") as nobody:
        for page in (*PAGES, "/docs/static/swagger-ui.css"):
            assert (await nobody.get(page)).status_code == 401


async def test_a_key_does_what_its_scope_says_and_no_more(
    app: FastAPI, services: Services, operations: list[Operation], record: Record
) -> None:
    refused = allowed = 0
    for scope in ALL:
        async with with_scopes(app, services, scope) as client:
            for operation in operations:
                needed = SCOPES[str(operation)]
                answer = await client.request(operation.method, url_of(operation))
                if needed in ("none", scope):
                    assert answer.status_code not in (401, 403), f"{scope}: {operation}"
                    allowed += 1
                    continue
                error = answer.json()["error"]
                assert (answer.status_code, error["code"]) == (403, "scope_missing")
                assert error["type"] == "permission_error"
                assert needed in error["message"]
                refused += 1
    record("S3", "calls with a key of another scope, all refused", refused, at_least=100)
    record("S3", "calls with the scope that is needed, all let in", allowed, at_least=36)


async def test_a_refusal_does_not_say_whether_an_id_is_there(
    app: FastAPI,
    services: Services,
    client_of: Callable[[str], httpx.AsyncClient],
    dataset: dict[str, str],
) -> None:
    async with with_scopes(app, services, "generate") as client:
        for id in (dataset["id"], "ds_" + "0" * 24):
            answer = await client.get(f"/datasets/{id}")
            assert answer.status_code == 403
            assert id not in answer.text


async def test_a_route_without_a_scope_is_closed(app: FastAPI, client: httpx.AsyncClient) -> None:
    async def forgotten() -> str:
        return "let in"

    app.router.routes.insert(0, StrictRoute("/forgotten", forgotten, methods=["GET"]))
    answer = await client.get("/forgotten")
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "scope_missing")
