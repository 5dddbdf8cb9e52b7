"""A published adapter's ingredients, shared by the tests of this room."""

from pathlib import Path

import pytest

from adapters.manifest import DatasetRef, Lineage, Manifest, Probe

TENANT = "tn_" + "a" * 24
ADAPTER = "ad_" + "b" * 24


@pytest.fixture
def draft() -> Manifest:
    """A manifest before it is published, that is, without files."""
    return Manifest(
        adapter_id=ADAPTER,
        kind="lora",
        base_model="luthier-tiny",
        base_revision="1",
        tokenizer_sha256="c" * 64,
        contract={"chat_template": "{{ messages }}", "stop_token_ids": [2], "eos_token": "</s>"},
        lineage=Lineage(
            job_id="job_" + "d" * 24,
            attempt=1,
            datasets=(DatasetRef(id="ds_" + "e" * 24, sha256="f" * 64),),
        ),
        method={"type": "sft", "learning_rate": 2e-4},
        peft={"type": "lora", "r": 8},
        metrics={"loss": 0.1},
        probes=(
            Probe(token_ids=(1, 2, 3), prompt_tokens=1, logprobs=(-0.1, -1 / 3),
                  base_logprobs=(-2.0, -3.0)),
        ),
        created_at=1_790_000_000.123456,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of an adapter; what is in them is no matter to the registry."""
    made = tmp_path / "trained"
    made.mkdir()
    (made / "adapter_config.json").write_bytes(b'{"peft_type": "LORA"}')
    (made / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 64)
    (made / "README.md").write_bytes(b"")
    return made
