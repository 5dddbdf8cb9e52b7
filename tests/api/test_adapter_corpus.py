"""The corpus of adapter archives through the front door: each refused with its own code."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from safetensors.numpy import save_file

from jobs.settings import Settings
from tests.api.making import unhurried

pytestmark = pytest.mark.anyio

CORPUS = Path(__file__).resolve().parents[1] / "corpus" / "adapters"
EXPECTED = json.loads((CORPUS / "expected.json").read_text())


@pytest.fixture
def settings(tmp_path: Path, base_folder: Path) -> Settings:
    """A server whose base has the shapes, and whose limits are those, that the corpus expects."""
    base = tmp_path / "base"
    shutil.copytree(base_folder, base)
    config = json.loads((base / "config.json").read_text()) | EXPECTED["config"]
    (base / "config.json").write_text(json.dumps(config))
    shapes = EXPECTED["base"].items()
    save_file({n: np.zeros(s, np.float32) for n, s in shapes}, base / "model.safetensors")
    return unhurried(
        data_dir=tmp_path / "data",
        base_models={"tiny": str(base)},
        max_lora_rank=EXPECTED["max_rank"],
        max_upload_bytes=EXPECTED["max_bytes"],
    )


@pytest.mark.parametrize("name", EXPECTED["codes"])
async def test_an_archive_of_the_corpus_gets_its_code(
    client: httpx.AsyncClient, stored: Callable[[], list[str]], name: str
) -> None:
    data = (CORPUS / name).read_bytes()
    answer = await client.post("/adapters/import?base_model=tiny", content=data)
    code = EXPECTED["codes"][name]
    if code == "accepted":
        assert answer.status_code == 201, answer.text
        return
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, code)
    assert stored() == []
    assert (await client.get("/adapters")).json()["data"] == []
