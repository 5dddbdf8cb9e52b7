"""Adapters with files and a row, for the tests of what starts from one."""

import tempfile
from pathlib import Path
from typing import Any

from adapters.manifest import AdapterKind, Lineage, Manifest
from adapters.registry import publish
from jobs.model import Adapter, new_id
from jobs.store import Store
from storage.objects import ObjectStore

LORA = {"type": "lora", "r": 4, "lora_alpha": 8.0, "target_modules": ["q_proj", "v_proj"]}


def add_adapter(
    store: Store,
    objects: ObjectStore,
    tenant_id: str,
    *,
    base_revision: str,
    base_model: str = "tiny",
    kind: AdapterKind = "lora",
    peft: dict[str, Any] | None = None,
) -> Adapter:
    """A published adapter; its files hold a word each."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            (Path(folder) / name).write_text(f"{name} of {kind}")
        manifest = Manifest(
            adapter_id=new_id("ad"),
            kind=kind,
            base_model=base_model,
            base_revision=base_revision,
            tokenizer_sha256="0" * 64,
            contract={},
            lineage=Lineage(imported=True),
            peft=LORA if peft is None else peft,
            created_at=1.0,
        )
        manifest = publish(objects, tenant_id, Path(folder), manifest)
    return store.adapters.add(
        Adapter(
            id=manifest.adapter_id,
            tenant_id=tenant_id,
            name="ours",
            kind=kind,
            base_model=base_model,
            job_id=None,
            size_bytes=manifest.size_bytes,
            manifest=manifest.model_dump(mode="json"),
            created_at=0.0,
        )
    )
