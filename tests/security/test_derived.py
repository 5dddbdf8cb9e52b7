"""What was made from a dataset: found by lineage over several jobs, and deleted on request."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.services import Services
from jobs.model import Checkpoint, CheckpointFile, new_id
from storage.keys import adapter_prefix, checkpoint_file
from tests.api.making import publish_adapter, spec_for

pytestmark = pytest.mark.anyio


class Tree:
    """A dataset, a job that read it with a checkpoint, its adapter, a job that went on with that
    and its adapter; and beside them a dataset, a job and an adapter that are of something else.
    """

    def __init__(self, services: Services, client: httpx.AsyncClient, folder: Path) -> None:
        self.services, self.client, self.folder = services, client, folder
        self.tenant_id = services.store.tenants.find("ours").id

    async def grow(self) -> None:
        self.dataset, self.other = await self.upload("q"), await self.upload("z")
        self.first = await self.post(spec_for(self.dataset))
        self.checkpoint = self.save_checkpoint(self.first)
        self.adapter = self.finish(self.first)
        self.second = await self.post(spec_for(self.other, init=self.adapter))
        self.grown = self.finish(self.second)
        metadata = {"note": f"not of {self.dataset['id']}"}
        self.beside = await self.post(spec_for(self.other, metadata=metadata))
        self.unrelated = self.finish(self.beside)

    async def upload(self, prompt: str) -> dict[str, Any]:
        row = f'{{"prompt": "{prompt}", "completion": "a"}}\n'.encode()
        found: dict[str, Any] = (
            await self.client.post("/datasets?format=jsonl", content=row)
        ).json()
        return found

    async def post(self, spec: dict[str, Any]) -> str:
        answer = await self.client.post(
            "/jobs", json=spec, headers={"idempotency-key": new_id("x")}
        )
        assert answer.status_code == 201, answer.text
        id: str = answer.json()["id"]
        return id

    def save_checkpoint(self, job_id: str) -> str:
        assert self.services.store.leases.claim("worker", "default") is not None
        key = checkpoint_file(self.tenant_id, job_id, 1, 5, "weights")
        self.services.objects.put(key, b"x")
        checkpoint = Checkpoint(
            id=new_id("ck"),
            job_id=job_id,
            attempt=1,
            step=5,
            files=(CheckpointFile(name="weights", size_bytes=1, sha256="0"),),
            metrics={},
            created_at=0.0,
        )
        self.services.store.leases.add_checkpoint(checkpoint)
        return checkpoint.id

    def finish(self, job_id: str) -> str:
        """Succeed with an adapter, as a worker would."""
        store = self.services.store
        if store.jobs.get(self.tenant_id, job_id).attempt == 0:
            claim = store.leases.claim("worker", "default")
            assert claim is not None
            assert claim.job.id == job_id
        adapter_id = publish_adapter(self.services, "ours", self.folder / job_id)
        adapter = store.adapters.get(self.tenant_id, adapter_id)
        store.adapters.delete(self.tenant_id, adapter_id)  # the row is the worker's to write
        store.leases.succeed(job_id, 1, adapter.model_copy(update={"job_id": job_id}), 1.0)
        return adapter_id


@pytest.fixture
async def tree(services: Services, client: httpx.AsyncClient, tmp_path: Path) -> Tree:
    tree = Tree(services, client, tmp_path)
    await tree.grow()
    return tree


async def test_it_is_listed_over_as_many_jobs_as_it_went(
    tree: Tree, client: httpx.AsyncClient
) -> None:
    answer = await client.get(f"/datasets/{tree.dataset['id']}/derived")
    assert answer.json() == {
        "object": "dataset.derived",
        "jobs": [tree.first, tree.second],
        "checkpoints": [tree.checkpoint],
        "adapters": [tree.adapter, tree.grown],
    }


async def test_a_dataset_that_is_deleted_alone_leaves_them_and_says_so(
    tree: Tree, client: httpx.AsyncClient
) -> None:
    answer = (await client.delete(f"/datasets/{tree.dataset['id']}")).json()
    assert answer["derived_deleted"] is False
    assert answer["derived"]["adapters"] == [tree.adapter, tree.grown]
    for path in (f"jobs/{tree.first}", f"adapters/{tree.adapter}", f"adapters/{tree.grown}"):
        assert (await client.get(f"/{path}")).status_code == 200


async def test_on_request_all_of_it_is_gone_with_its_bytes_and_nothing_else(
    tree: Tree, client: httpx.AsyncClient, stored: Callable[[], list[str]], services: Services
) -> None:
    answer = await client.delete(f"/datasets/{tree.dataset['id']}?derived=true")

    assert answer.status_code == 200
    assert answer.json()["derived_deleted"] is True
    gone = [
        f"datasets/{tree.dataset['id']}",
        *(f"jobs/{id}" for id in (tree.first, tree.second)),
        *(f"jobs/{tree.first}/{part}" for part in ("events", "metrics", "checkpoints")),
        *(f"adapters/{id}" for id in (tree.adapter, tree.grown)),
    ]
    assert {(await client.get(f"/{path}")).status_code for path in gone} == {404}
    kept = [f"datasets/{tree.other['id']}", f"jobs/{tree.beside}", f"adapters/{tree.unrelated}"]
    assert {(await client.get(f"/{path}")).status_code for path in kept} == {200}
    keys = stored()
    for id in (tree.dataset["id"], tree.first, tree.second, tree.adapter, tree.grown):
        assert not [key for key in keys if id in key]
    assert [key for key in keys if key.startswith(adapter_prefix(tree.tenant_id, tree.unrelated))]
    deeds = services.store.audit.page(tree.tenant_id, limit=100).data
    deleted = {deed.object_id for deed in deeds if deed.action.endswith(".delete")}
    assert {tree.dataset["id"], tree.first, tree.second, tree.adapter, tree.grown} <= deleted


async def test_while_a_job_needs_any_of_it_nothing_is_deleted(
    tree: Tree, client: httpx.AsyncClient, stored: Callable[[], list[str]]
) -> None:
    third = await tree.post(spec_for(tree.other, init=tree.grown))
    before = stored()
    answer = await client.delete(f"/datasets/{tree.dataset['id']}?derived=true")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "in_use")
    assert third in answer.json()["error"]["message"]
    assert stored() == before
    assert (await client.get(f"/adapters/{tree.adapter}")).status_code == 200
    await client.post(f"/jobs/{third}/cancel")
    again = await client.delete(f"/datasets/{tree.dataset['id']}?derived=true")
    assert again.json()["derived"]["jobs"] == [tree.first, tree.second, third]


async def test_a_pipeline_whose_job_is_gone_still_says_how_it_ended(
    tree: Tree, client: httpx.AsyncClient
) -> None:
    made = (await client.post("/pipelines", json={"stages": {"a": spec_for(tree.dataset)}})).json()
    tree.finish(made["stages"]["a"]["job_id"])
    before = (await client.get(f"/pipelines/{made['id']}")).json()
    assert before["status"] == "succeeded"

    await client.delete(f"/datasets/{tree.dataset['id']}?derived=true")

    after = (await client.get(f"/pipelines/{made['id']}")).json()
    assert (after["status"], after["finished_at"]) == ("succeeded", before["finished_at"])
    assert after["stages"]["a"]["job_id"] is None
    assert (await client.get("/pipelines")).status_code == 200


async def test_a_stranger_sees_nothing_of_it(
    tree: Tree, client_of: Callable[[str], httpx.AsyncClient]
) -> None:
    stranger = client_of("theirs")
    for method, path in (("GET", "/derived"), ("DELETE", "?derived=true")):
        answer = await stranger.request(method, f"/datasets/{tree.dataset['id']}{path}")
        assert answer.status_code == 404
