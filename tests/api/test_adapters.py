"""Adapters over HTTP: import, list, download, delete; nothing of a refused one stays."""

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import load, save

from adapters.registry import tenant_of
from api import archives
from api.services import Services
from jobs.adapters import Adapters
from jobs.errors import StoreUnavailable
from jobs.model import Adapter
from storage.keys import adapter_file
from tests.api.making import HIDDEN, MODULE, RANK, peft_files, publish_adapter, tar_of, untar

pytestmark = pytest.mark.anyio

IMPORT = "/adapters/import?base_model=tiny"


async def test_an_imported_adapter_is_listed_with_where_it_comes_from(
    client: httpx.AsyncClient, services: Services
) -> None:
    files = peft_files()
    answer = await client.post(f"{IMPORT}&name=mine", content=tar_of(files))

    assert answer.status_code == 201, answer.text
    adapter = answer.json()
    assert (adapter["object"], adapter["name"], adapter["kind"]) == ("adapter", "mine", "lora")
    assert adapter["peft"] == {
        "type": "lora",
        "r": RANK,
        "lora_alpha": 4.0,
        "lora_dropout": 0.0,
        "target_modules": ["q_proj"],
        "use_rslora": False,
        "use_dora": False,
    }
    assert adapter["lineage"]["imported"] is True
    assert adapter["bytes"] == sum(map(len, files.values()))
    assert adapter["base_revision"] == services.bases.find("tiny").revision
    assert [entry["name"] for entry in adapter["files"]] == sorted(files)
    assert (await client.get("/adapters")).json()["data"] == [adapter]
    assert (await client.get(f"/adapters/{adapter['id']}")).json() == adapter
    assert tenant_of(services.objects, adapter["id"]) == services.store.tenants.create("ours").id


async def test_a_download_is_what_was_imported_and_can_be_imported_again(
    client: httpx.AsyncClient,
) -> None:
    files = peft_files()
    adapter = (await client.post(IMPORT, content=tar_of(files))).json()

    answer = await client.get(f"/adapters/{adapter['id']}/download")

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-tar"
    assert f'filename="{adapter["id"]}.tar"' in answer.headers["content-disposition"]
    assert int(answer.headers["content-length"]) == len(answer.content)
    found = untar(answer.content)
    assert json.loads(found.pop("manifest.json"))["adapter_id"] == adapter["id"]
    assert found == files
    again = await client.post(IMPORT, content=answer.content)
    assert again.status_code == 201
    assert again.json()["id"] != adapter["id"]


@pytest.mark.parametrize("checked_first", [True, False])
async def test_a_damaged_file_is_not_handed_out(
    client: httpx.AsyncClient,
    services: Services,
    monkeypatch: pytest.MonkeyPatch,
    checked_first: bool,
) -> None:
    monkeypatch.setattr(archives, "CHECKED_FIRST_BYTES", 1 << 30 if checked_first else 0)
    adapter = (await client.post(IMPORT, content=tar_of(peft_files()))).json()
    tenant_id = services.store.tenants.create("ours").id
    key = adapter_file(tenant_id, adapter["id"], "adapter_model.safetensors")
    data = bytearray(services.objects.get(key))
    data[-1] ^= 1
    services.objects.put(key, bytes(data))
    route = f"/adapters/{adapter['id']}/download"
    if not checked_first:
        with pytest.raises(Exception, match="req_"):
            await client.get(route)
        return

    answer = await client.get(route)

    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "adapter_corrupt")
    assert "adapter_model.safetensors" in answer.json()["error"]["message"]


async def test_a_deleted_adapter_is_gone_with_its_bytes(
    client: httpx.AsyncClient, services: Services, stored: Callable[[], list[str]], tmp_path: Path
) -> None:
    adapter_id = publish_adapter(services, "ours", tmp_path / "adapter")
    answer = await client.delete(f"/adapters/{adapter_id}")
    assert answer.json() == {"id": adapter_id, "object": "adapter", "deleted": True}
    assert stored() == []
    for route in (f"/adapters/{adapter_id}", f"/adapters/{adapter_id}/download"):
        assert (await client.get(route)).status_code == 404


def nan_weights() -> dict[str, bytes]:
    files = peft_files()
    weights = load(files["adapter_model.safetensors"])
    weights[f"{MODULE}.lora_A.weight"][0, 0] = np.nan
    return files | {"adapter_model.safetensors": save(weights)}


def wrong_shape() -> dict[str, bytes]:
    weights = load(peft_files()["adapter_model.safetensors"])
    weights[f"{MODULE}.lora_B.weight"] = np.zeros((HIDDEN, RANK + 1), np.float32)
    return peft_files() | {"adapter_model.safetensors": save(weights)}


@pytest.mark.parametrize(
    ("archive", "code"),
    [
        (tar_of(nan_weights()), "nan_weights"),
        (tar_of(wrong_shape()), "wrong_shape"),
        (tar_of(peft_files() | {"adapter_model.bin": b"\x80\x04"}), "pickle_in_archive"),
        (tar_of(peft_files() | {"../evil.txt": b"x"}), "path_traversal"),
        (tar_of({}), "archive_malformed"),
        (b"", "archive_malformed"),
        (b"no tar at all" * 100, "archive_malformed"),
        (gzip.compress(tar_of(peft_files())), "archive_compressed"),
        (tar_of(peft_files())[:700], "archive_malformed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_cannot_be_served_is_refused_and_leaves_nothing(
    client: httpx.AsyncClient, stored: Callable[[], list[str]], archive: bytes, code: str
) -> None:
    answer = await client.post(IMPORT, content=archive)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, code)
    assert stored() == []
    assert (await client.get("/adapters")).json()["data"] == []


@pytest.mark.parametrize(
    ("query", "param", "code"),
    [
        ("", "base_model", "invalid_request"),
        ("?base_model=gpt-9", "base_model", "base_model_not_allowed"),
        ("?base_model=tiny&name=", "name", "invalid_request"),
        ("?base_model=tiny&tenant_id=x", "tenant_id", "unknown_field"),
    ],
)
async def test_odd_options_are_refused(
    client: httpx.AsyncClient, query: str, param: str, code: str
) -> None:
    answer = await client.post(f"/adapters/import{query}", content=tar_of(peft_files()))
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (422, param, code)


async def test_what_the_database_did_without_saying_so_keeps_its_files(
    client: httpx.AsyncClient, services: Services
) -> None:
    class AnswersLost(Adapters):
        def add(self, adapter: Adapter) -> Adapter:
            super().add(adapter)
            raise StoreUnavailable("the answer got lost")

    services.store.adapters = AnswersLost(services.store.database)
    answer = await client.post(IMPORT, content=tar_of(peft_files()))
    assert answer.status_code == 503
    (adapter,) = (await client.get("/adapters")).json()["data"]
    assert (await client.get(f"/adapters/{adapter['id']}/download")).status_code == 200


async def test_a_form_is_refused_with_what_to_send_instead(client: httpx.AsyncClient) -> None:
    answer = await client.post(IMPORT, files={"file": ("a.tar", io.BytesIO(b"x"))})
    assert answer.status_code == 415
    assert "tar itself" in answer.json()["error"]["message"]


async def test_a_base_without_weights_cannot_take_an_import(
    client: httpx.AsyncClient, services: Services, base_folder: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (bare / name).write_bytes((base_folder / name).read_bytes())
    services.bases._allowed["bare"] = str(bare)
    answer = await client.post("/adapters/import?base_model=bare", content=tar_of(peft_files()))
    error: dict[str, Any] = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (422, "base_model_unusable")
