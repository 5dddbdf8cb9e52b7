"""Who did what to which id: a line for each deed, in its transaction, and none is ever changed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI

from api.services import Services
from jobs.audit import Actor, acting_as
from jobs.keys import SCOPES
from jobs.store import Store
from jobs.tables import audit
from tests.api.making import peft_files, publish_adapter, spec_for, tar_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def auditor(app: FastAPI, services: Services) -> httpx.AsyncClient:
    tenants = services.store.tenants
    with acting_as(Actor("operator")):
        key, _ = tenants.issue_key(tenants.create("ours").id, "auditor", SCOPES)
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app),
        base_url="http://luthier.test",
        headers={"authorization": f"Bearer {key}"},
    )


async def test_every_deed_is_written_down_with_who_and_to_what(
    auditor: httpx.AsyncClient, services: Services, tmp_path: Path
) -> None:
    row = b'{"prompt": "q", "completion": "a"}\n'
    dataset = (await auditor.post("/datasets?format=jsonl", content=row)).json()
    headers = {"x-request-id": "deed-0123456789"}
    job = (await auditor.post("/jobs", json=spec_for(dataset), headers=headers)).json()
    for change in ("pause", "resume", "cancel"):
        await auditor.post(f"/jobs/{job['id']}/{change}")
    pipeline = (await auditor.post("/pipelines", json={"stages": {"a": spec_for(dataset)}})).json()
    await auditor.post(f"/pipelines/{pipeline['id']}/cancel")
    imported = await auditor.post("/adapters/import?base_model=tiny", content=tar_of(peft_files()))
    await auditor.delete(f"/adapters/{imported.json()['id']}")
    await auditor.delete(f"/datasets/{dataset['id']}")
    await auditor.get("/jobs")

    deeds = (await auditor.get("/audit?limit=100")).json()["data"]

    stage = pipeline["stages"]["a"]["job_id"]
    adapter_id = imported.json()["id"]
    assert [(deed["action"], deed["object_id"]) for deed in reversed(deeds)][2:] == [
        ("dataset.create", dataset["id"]),
        ("job.create", job["id"]),
        ("job.pause", job["id"]),
        ("job.resume", job["id"]),
        ("job.cancel", job["id"]),
        ("pipeline.create", pipeline["id"]),
        ("job.create", stage),
        ("pipeline.cancel", pipeline["id"]),
        ("adapter.create", adapter_id),
        ("adapter.delete", adapter_id),
        ("dataset.delete", dataset["id"]),
    ]
    (key,) = services.store.tenants.keys(services.store.tenants.find("ours").id)
    by_key, by_operator = deeds[:-2], deeds[-2:]
    assert {(deed["actor"], deed["key_id"]) for deed in by_key} == {("key", key.id)}
    assert {(deed["actor"], deed["key_id"]) for deed in by_operator} == {("operator", None)}
    (posted,) = [d for d in deeds if (d["action"], d["object_id"]) == ("job.create", job["id"])]
    assert posted["request_id"] == "deed-0123456789"
    about = (await auditor.get(f"/audit?object_id={job['id']}")).json()["data"]
    assert [deed["action"] for deed in about] == [
        "job.cancel",
        "job.resume",
        "job.pause",
        "job.create",
    ]


async def test_a_deed_that_was_not_done_is_not_written_down(
    auditor: httpx.AsyncClient, services: Services
) -> None:
    before = (await auditor.get("/audit")).json()["data"]
    unknown = {"id": "ds_" + "0" * 24}
    assert (await auditor.post("/jobs", json=spec_for(unknown))).status_code == 404
    assert (await auditor.delete(f"/datasets/{unknown['id']}")).status_code == 404
    assert (await auditor.post("/datasets?format=jsonl", content=b"{}")).status_code == 422
    assert (await auditor.get("/audit")).json()["data"] == before


async def test_the_log_is_read_page_by_page_and_by_its_tenant_alone(
    auditor: httpx.AsyncClient, client_of: Callable[[str], httpx.AsyncClient], services: Services
) -> None:
    client_of("theirs")
    whole = (await auditor.get("/audit?limit=100")).json()["data"]
    first = (await auditor.get("/audit?limit=1")).json()
    rest = (await auditor.get(f"/audit?after={first['data'][-1]['id']}")).json()
    assert first["has_more"]
    assert first["data"] + rest["data"] == whole
    tenants = services.store.tenants
    foreign = services.store.audit.page(tenants.find("theirs").id).data
    assert foreign
    assert not {deed.id for deed in foreign} & {deed["id"] for deed in whole}
    assert (await auditor.get(f"/audit?after={foreign[0].id}")).status_code == 404


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_no_line_can_be_changed_or_removed(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    store = Store(request.getfixturevalue("postgres_url") if kind == "postgresql" else url)
    store.database.migrate()
    tenant_id = store.tenants.create("ours").id
    for change in (
        audit.update().values(actor="nobody"),
        audit.delete(),
        audit.delete().where(audit.c.tenant_id == tenant_id),
    ):
        with (
            pytest.raises(sa.exc.DBAPIError, match="append-only"),
            store.database.write() as connection,
        ):
            connection.execute(change)
    (deed,) = store.audit.page(tenant_id).data
    assert (deed.actor, deed.action, deed.object_id) == ("service", "tenant.create", tenant_id)
    store.close()


async def test_what_a_worker_makes_is_the_services_own_deed(
    auditor: httpx.AsyncClient, services: Services, tmp_path: Path
) -> None:
    adapter_id = publish_adapter(services, "ours", tmp_path / "adapter")
    deeds: list[dict[str, Any]] = (await auditor.get(f"/audit?object_id={adapter_id}")).json()[
        "data"
    ]
    assert [(deed["actor"], deed["action"]) for deed in deeds] == [("service", "adapter.create")]
