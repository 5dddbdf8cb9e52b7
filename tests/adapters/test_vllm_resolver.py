"""What vLLM is handed: folders of whole, plain LoRA adapters of the base that it serves."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from adapters import registry
from adapters.cache import AdapterCache
from adapters.errors import AdapterCorrupt, AdapterInvalid, AdapterMissing
from adapters.manifest import AdapterKind, Manifest
from adapters.vllm_resolver import Served, Shelf
from storage.keys import adapter_file
from storage.memory import MemoryStore
from tests.adapters.crafting import BASE, CONFIG, Tensors, dora, lora, safetensors

TENANT = "tn_" + "a" * 24
Publish = Callable[..., str]


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def shelf(store: MemoryStore, tmp_path: Path) -> Shelf:
    cache = AdapterCache(store, tmp_path / "cache", 1 << 20, in_use_s=float("inf"))
    return Shelf(cache, Served("luthier-tiny", "1", BASE, max_lora_rank=4))


@pytest.fixture
def publish(store: MemoryStore, draft: Manifest, tmp_path: Path) -> Publish:
    """Publishes a LoRA of the crafted base; its id."""

    def make(tensors: Tensors | None = None, *, manifest: object = None, **config: object) -> str:
        number = len(list(tmp_path.glob("trained-*")))
        folder = tmp_path / f"trained-{number}"
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
        (folder / "adapter_model.safetensors").write_bytes(safetensors(tensors or lora()))
        changed = {"adapter_id": f"ad_{number:024x}"}
        made = draft.model_copy(update=changed | (manifest or {}))  # type: ignore[operator]
        return registry.publish(store, TENANT, folder, made).adapter_id

    return make


def refused(shelf: Shelf, adapter_id: str) -> str:
    with pytest.raises(AdapterInvalid) as refusal:
        shelf.folder_of(adapter_id)
    return refusal.value.code


def test_a_plain_lora_comes_with_all_its_files(shelf: Shelf, publish: Publish) -> None:
    adapter_id = publish()
    folder = shelf.folder_of(adapter_id)
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    ]
    assert registry.verify(folder, adapter_id).adapter_id == adapter_id


@pytest.mark.parametrize(
    "name",
    ["../../etc", "/etc", "", ".", "ad_", "ad_" + "0" * 23 + "/", "ad_../" + "0" * 21, "a\0b",
     "AD_" + "0" * 24, "ad_" + "0" * 24 + "\n", "tn_" + "a" * 24, "luthier-tiny"],
)  # fmt: skip
def test_what_is_no_id_is_unknown_and_reaches_no_path(
    shelf: Shelf, publish: Publish, tmp_path: Path, name: str
) -> None:
    publish()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(AdapterMissing):
        shelf.folder_of(name)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_adapter_that_was_deleted_is_unknown(
    shelf: Shelf, publish: Publish, store: MemoryStore
) -> None:
    adapter_id = publish()
    registry.remove(store, TENANT, adapter_id)
    with pytest.raises(AdapterMissing):
        shelf.folder_of(adapter_id)


def test_a_file_that_was_tampered_with_is_never_on_the_disk(
    shelf: Shelf, publish: Publish, store: MemoryStore, tmp_path: Path
) -> None:
    adapter_id = publish()
    key = adapter_file(TENANT, adapter_id, "adapter_model.safetensors")
    data = bytearray(store.get(key))
    data[-1] ^= 1
    store.put(key, bytes(data))
    with pytest.raises(AdapterCorrupt, match=r"adapter_model\.safetensors is damaged"):
        shelf.folder_of(adapter_id)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("kind", ["prompt_tuning", "prefix_tuning", "full", "reward"])
def test_kinds_that_vllm_does_not_know_are_refused(
    shelf: Shelf, publish: Publish, kind: AdapterKind
) -> None:
    assert refused(shelf, publish(manifest={"kind": kind})) == "adapter_kind_unsupported"


def test_a_dora_is_refused(shelf: Shelf, publish: Publish) -> None:
    assert refused(shelf, publish(dora(), use_dora=True)) == "dora_unsupported"


def test_modules_to_save_are_refused(shelf: Shelf, publish: Publish) -> None:
    found = refused(shelf, publish(modules_to_save=["embed_tokens"]))
    assert found == "modules_to_save_unsupported"


def test_a_rank_above_that_of_this_vllm_is_refused(shelf: Shelf, publish: Publish) -> None:
    assert shelf.folder_of(publish(lora(4), r=4)).is_dir()
    assert refused(shelf, publish(lora(5), r=5)) == "rank_too_high"


def test_an_adapter_of_another_base_is_refused(shelf: Shelf, publish: Publish) -> None:
    assert refused(shelf, publish(manifest={"base_model": "other"})) == "wrong_base"
    assert refused(shelf, publish(manifest={"base_revision": "2"})) == "base_model_changed"
    assert refused(shelf, publish(lora(scale=2))) == "wrong_base"


def test_weights_that_are_no_numbers_are_refused(shelf: Shelf, publish: Publish) -> None:
    tensors = lora()
    name, (dtype, shape, raw) = next(iter(tensors.items()))
    bad = np.frombuffer(raw, "<f4").copy()
    bad[0] = np.nan
    tensors[name] = (dtype, shape, bad.tobytes())
    assert refused(shelf, publish(tensors)) == "nan_weights"
