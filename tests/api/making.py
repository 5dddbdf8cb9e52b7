"""Bodies, adapters and archives for the tests of the API."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save, save_file

from adapters.manifest import AdapterKind, Lineage, Manifest
from adapters.registry import publish
from api.rendering import renderer_of
from api.services import Services
from jobs.model import Adapter, new_id
from jobs.settings import Settings

HIDDEN = 8
RANK = 2
MODULE = "base_model.model.model.layers.0.self_attn.q_proj"


def unhurried(**settings: Any) -> Settings:
    """Settings for tests that call as often as they like."""
    rates = ("reads", "writes", "generations", "unverified")
    return Settings(**(dict.fromkeys((f"{rate}_per_minute" for rate in rates), 0) | settings))


def spec_for(dataset: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A job's body for the tests' base model."""
    method = {"type": "sft", "max_length": 64}
    return {"base_model": "tiny", "dataset": dataset["id"], "method": method} | changes


class Woken:
    """Wake-ups that are counted."""

    def __init__(self) -> None:
        self.queues: list[str] = []

    def wake(self, queue: str) -> None:
        self.queues.append(queue)

    def waiting(self, queue: str) -> int:
        return len(self.queues)


def publish_adapter(
    services: Services, tenant: str, folder: Path, *, kind: AdapterKind = "lora", **changes: Any
) -> str:
    """An adapter of a tenant, in the object store and in the table; `changes` its contract."""
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text("{}")
    save_file({"x": np.zeros(2, np.float32)}, folder / "adapter_model.safetensors")
    base = services.bases.find("tiny")
    contract = renderer_of(base).contract
    tenant_id = services.store.tenants.create(tenant).id
    manifest = Manifest(
        adapter_id=new_id("ad"),
        kind=kind,
        base_model="tiny",
        base_revision=base.revision,
        tokenizer_sha256=contract.tokenizer_sha256,
        contract=contract.model_dump(mode="json") | changes,
        lineage=Lineage(imported=True),
        peft={"type": "lora", "r": 2},
        created_at=1.0,
    )
    manifest = publish(services.objects, tenant_id, folder, manifest)
    row = Adapter(
        id=manifest.adapter_id,
        tenant_id=tenant_id,
        name="ours",
        kind=kind,
        base_model="tiny",
        job_id=None,
        size_bytes=manifest.size_bytes,
        manifest=manifest.model_dump(mode="json"),
        created_at=0.0,
    )
    return services.store.adapters.add(row).id


def peft_files(fill: float = 0.5) -> dict[str, bytes]:
    """A PEFT adapter for the tests' base model, as PEFT would save it."""
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 4,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": "tiny",
    }
    weights = {
        f"{MODULE}.lora_A.weight": np.full((RANK, HIDDEN), fill, np.float32),
        f"{MODULE}.lora_B.weight": np.full((HIDDEN, RANK), fill, np.float32),
    }
    return {
        "adapter_config.json": json.dumps(config).encode(),
        "adapter_model.safetensors": save(weights),
    }


def tar_of(files: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return sink.getvalue()


def untar(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {m.name: (tar.extractfile(m) or io.BytesIO()).read() for m in tar.getmembers()}
