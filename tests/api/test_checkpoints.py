"""A checkpoint published over HTTP: an adapter like any other, once, whatever became of its job."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from adapters.registry import read_manifest
from api.services import Services
from jobs.checkpoints import store_checkpoint
from jobs.model import Checkpoint, JobError
from storage.keys import checkpoint_file
from storage.memory import MemoryStore
from tests.api.making import peft_files, spec_for

pytestmark = pytest.mark.anyio

LORA = {"type": "lora", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}


def lora_state(folder: Path) -> None:
    """What a trainer saves of LoRA; the config names the worker's folder."""
    folder.mkdir()
    files = peft_files()
    config = json.loads(files["adapter_config.json"])
    config["base_model_name_or_path"] = "/srv/models/tiny"
    files["adapter_config.json"] = json.dumps(config).encode()
    files |= {"optimizer.pt": b"o" * 99, "training_args.bin": b"t", "trainer_state.json": b"{}"}
    for name, data in files.items():
        (folder / name).write_bytes(data)


def full_state(folder: Path, base: Path) -> None:
    folder.mkdir()
    weights = load_file(base / "model.safetensors")
    save_file(
        {name: w + np.float32(1) for name, w in weights.items()}, folder / "model.safetensors"
    )
    (folder / "config.json").write_bytes((base / "config.json").read_bytes())
    (folder / "optimizer.pt").write_bytes(b"o")
    (folder / "tokenizer.json").write_bytes(b"{}")


def save(services: Services, folder: Path, step: int = 5) -> Checkpoint:
    """A checkpoint of the job that waits, as its worker stores it."""
    claim = services.store.leases.claim("worker", "default")
    assert claim is not None
    made = store_checkpoint(services.objects, claim.job, step, folder, {"loss": 0.5})
    services.store.leases.add_checkpoint(made)
    return made


def end(services: Services, checkpoint: Checkpoint, how: str, tenant_id: str) -> None:
    jobs, leases = services.store.jobs, services.store.leases
    job_id, attempt = checkpoint.job_id, checkpoint.attempt
    if how == "failed":
        leases.fail(job_id, attempt, JobError(code="diverged", message="no"))
    elif how == "cancelled":
        jobs.cancel(tenant_id, job_id)
        leases.cancelled(job_id, attempt)
    elif how == "paused":
        jobs.pause(tenant_id, job_id)
        leases.release(job_id, attempt)
    assert jobs.get(tenant_id, job_id).status == how


def route(checkpoint: Checkpoint) -> str:
    return f"/jobs/{checkpoint.job_id}/checkpoints/{checkpoint.id}/publish"


@pytest.mark.parametrize("how", ["running", "paused", "failed", "cancelled"])
async def test_a_checkpoint_becomes_an_adapter_that_says_where_it_comes_from(
    client: httpx.AsyncClient, dataset: dict[str, Any], services: Services, tmp_path: Path, how: str
) -> None:
    tenant_id = services.store.tenants.create("ours").id
    spec = spec_for(dataset, peft=LORA, name="long")
    await client.post("/jobs", json=spec)
    lora_state(tmp_path / "state")
    checkpoint = save(services, tmp_path / "state")
    end(services, checkpoint, how, tenant_id)

    answer = await client.post(route(checkpoint))

    adapter = answer.json()
    assert answer.status_code == 201, answer.text
    assert (adapter["name"], adapter["kind"], adapter["job_id"]) == (
        "long at step 5",
        "lora",
        checkpoint.job_id,
    )
    assert adapter["lineage"] == {
        "job_id": checkpoint.job_id,
        "attempt": 1,
        "checkpoint_id": checkpoint.id,
        "step": 5,
        "datasets": [{"id": dataset["id"], "sha256": dataset["sha256"]}],
        "parent_adapter_id": None,
        "parents": [],
        "imported": False,
    }
    assert adapter["metrics"] == {"loss": 0.5}
    assert [file["name"] for file in adapter["files"]] == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert (await client.get("/adapters")).json()["data"] == [adapter]
    downloaded = await client.get(f"/adapters/{adapter['id']}/download")
    assert b"/srv/models" not in downloaded.content
    manifest = read_manifest(services.objects, tenant_id, adapter["id"])
    assert manifest.probes == ()
    assert manifest.contract["tokenizer_sha256"] == manifest.tokenizer_sha256
    goes_on = await client.post("/jobs", json=spec_for(dataset, init=adapter["id"]))
    assert (goes_on.status_code, goes_on.json()["peft"]["r"]) == (201, 2)


async def test_a_whole_model_is_published_with_its_bases_tokenizer(
    client: httpx.AsyncClient,
    dataset: dict[str, Any],
    services: Services,
    tmp_path: Path,
    base_folder: Path,
) -> None:
    await client.post("/jobs", json=spec_for(dataset, peft={"type": "full"}))
    full_state(tmp_path / "state", base_folder)
    answer = await client.post(route(save(services, tmp_path / "state")))
    adapter = answer.json()
    assert answer.status_code == 201, answer.text
    sizes = {file["name"]: file["size_bytes"] for file in adapter["files"]}
    assert (adapter["kind"], sorted(sizes)) == (
        "full",
        ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"],
    )
    assert sizes["tokenizer.json"] == (base_folder / "tokenizer.json").stat().st_size


async def test_the_same_checkpoint_is_the_same_adapter_also_when_it_is_gone(
    client: httpx.AsyncClient, dataset: dict[str, Any], services: Services, tmp_path: Path
) -> None:
    await client.post("/jobs", json=spec_for(dataset, peft=LORA))
    lora_state(tmp_path / "state")
    checkpoint = save(services, tmp_path / "state")

    answers = await asyncio.gather(*(client.post(route(checkpoint)) for _ in range(8)))
    services.store.leases.drop_checkpoints(checkpoint.job_id, 1, keep=0)
    late = await client.post(route(checkpoint))

    assert {(a.status_code, a.content) for a in [*answers, late]} == {(201, answers[0].content)}
    assert len((await client.get("/adapters")).json()["data"]) == 1
    adapter_id = late.json()["id"]
    assert (await client.delete(f"/adapters/{adapter_id}")).status_code == 200
    assert (await client.post(route(checkpoint))).status_code == 404


async def test_weights_that_could_not_be_served_are_not_published(
    client: httpx.AsyncClient,
    dataset: dict[str, Any],
    services: Services,
    tmp_path: Path,
    stored: Callable[[], list[str]],
) -> None:
    await client.post("/jobs", json=spec_for(dataset, peft=LORA))
    lora_state(tmp_path / "state")
    weights = tmp_path / "state" / "adapter_model.safetensors"
    save_file({n: np.full_like(w, np.nan) for n, w in load_file(weights).items()}, weights)
    before = stored()
    answer = await client.post(route(save(services, tmp_path / "state")))
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "nan_weights")
    assert [key for key in stored() if "/adapters/" in key] == []
    assert set(before) < set(stored()), "the checkpoint stays"


async def test_a_checkpoint_that_is_damaged_or_gone_is_told_as_that(
    client: httpx.AsyncClient, dataset: dict[str, Any], services: Services, tmp_path: Path
) -> None:
    tenant_id = services.store.tenants.create("ours").id
    await client.post("/jobs", json=spec_for(dataset, peft=LORA))
    lora_state(tmp_path / "state")
    made = save(services, tmp_path / "state")
    key = checkpoint_file(tenant_id, made.job_id, 1, 5, "adapter_model.safetensors")
    services.objects.put(key, b"rotten")

    damaged = await client.post(route(made))

    error = damaged.json()["error"]
    assert (damaged.status_code, error["code"]) == (500, "checkpoint_corrupt")
    assert "adapter_model.safetensors" in error["message"]
    assert tenant_id not in damaged.text
    for id in ("ck_" + "0" * 24, "x", "ck_%00", made.job_id):
        answer = await client.post(f"/jobs/{made.job_id}/checkpoints/{id}/publish")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


class LetsGo(MemoryStore):
    """A store that is asked for a checkpoint in the moment in which its job lets go of it."""

    services: Services
    checkpoint: Checkpoint

    def get_file(self, key: str, path: Path) -> str:
        if "/checkpoints/" in key:
            job_id = self.checkpoint.job_id
            self.services.store.leases.drop_checkpoints(job_id, 1, keep=0)
            self.delete(key)
        return super().get_file(key, path)


async def test_a_checkpoint_that_its_job_lets_go_of_meanwhile_is_gone(
    client: httpx.AsyncClient, dataset: dict[str, Any], services: Services, tmp_path: Path
) -> None:
    objects = LetsGo()
    services.objects = objects
    await client.post("/jobs", json=spec_for(dataset, peft=LORA))
    lora_state(tmp_path / "state")
    objects.services, objects.checkpoint = services, save(services, tmp_path / "state")
    answer = await client.post(route(objects.checkpoint))
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert (await client.get("/adapters")).json()["data"] == []


async def test_a_base_that_changed_since_is_told(
    client: httpx.AsyncClient, dataset: dict[str, Any], services: Services, tmp_path: Path
) -> None:
    job = (await client.post("/jobs", json=spec_for(dataset, peft=LORA))).json()
    lora_state(tmp_path / "state")
    checkpoint = save(services, tmp_path / "state")
    base = services.bases.find("tiny", weights=True)
    changed = type(base)(base.name, base.path, "another")
    services.bases._found["tiny", True] = changed
    answer = await client.post(route(checkpoint))
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")
    assert job["id"] in answer.json()["error"]["message"]


async def test_a_checkpoint_of_another_job_or_tenant_is_unknown(
    client: httpx.AsyncClient,
    client_of: Callable[[str], httpx.AsyncClient],
    dataset: dict[str, Any],
    services: Services,
    tmp_path: Path,
) -> None:
    await client.post("/jobs", json=spec_for(dataset, peft=LORA))
    lora_state(tmp_path / "state")
    made = save(services, tmp_path / "state")
    assert (await client.post(route(made))).status_code == 201
    other = (await client.post("/jobs", json=spec_for(dataset))).json()
    answer = await client.post(f"/jobs/{other['id']}/checkpoints/{made.id}/publish")
    assert answer.json()["error"]["message"] == f"No checkpoint with id {made.id!r}."
    foreign = await client_of("theirs").post(route(made))
    assert foreign.json()["error"]["message"] == f"No job with id {made.job_id!r}."
    assert answer.status_code == foreign.status_code == 404
