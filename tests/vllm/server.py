"""A real vLLM on loopback, with Luthier's plugin, from the environment of `make env-vllm`."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.servers import S3Server
from tests.workers import REPO

PYTHON = REPO / ".venv-vllm" / "bin" / "python"
GUARD = REPO / "tests" / "guard.py"
MODEL = REPO / "examples" / "models" / "luthier-tiny"
MAX_RANK = 16
START_S = 400
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TQDM_DISABLE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}
PLUGIN = {"VLLM_PLUGINS": "luthier", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}


class NotStarted(Exception):
    """vLLM ended, or took too long; the message ends with its log."""


def storage_settings(s3: S3Server) -> dict[str, str]:
    """The object store, as any of Luthier's roles is told of it."""
    return {
        "LUTHIER_STORAGE_URL": f"s3://{s3.bucket}/luthier",
        "LUTHIER_S3_ENDPOINT_URL": s3.endpoint_url,
        "LUTHIER_S3_ACCESS_KEY": s3.access_key,
        "LUTHIER_S3_SECRET_KEY": s3.secret_key,
    }


@contextmanager
def vllm(
    port: int, base_models: str, environment: dict[str, str], *arguments: str
) -> Iterator[str]:
    """vLLM's URL, once it answers. It and all its processes end with the block, or with us."""
    data = Path(tempfile.mkdtemp(prefix="luthier-vllm-"))
    given = OFFLINE | {"LUTHIER_BASE_MODELS": base_models, "LUTHIER_DATA_DIR": str(data / "own")}
    command = [
        "env", *(f"{name}={value}" for name, value in (given | environment).items()),
        str(PYTHON), "-m", "vllm.entrypoints.openai.api_server",
        "--host", "127.0.0.1", "--port", str(port), "--model", str(MODEL),
        "--served-model-name", "luthier-tiny", "--dtype", "float32", "--enforce-eager",
        "--enable-lora", "--max-lora-rank", str(MAX_RANK), *arguments,
    ]  # fmt: skip
    guard = subprocess.Popen(
        [sys.executable, "-I", str(GUARD), str(data), "SIGTERM", "", *command],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"
    with guard:  # leaving closes its pipe, which is the order to stop, and waits
        _wait(data, url)
        yield url


def _wait(data: Path, url: str) -> None:
    deadline = time.monotonic() + START_S
    with httpx.Client(timeout=5) as client:
        while time.monotonic() < deadline and not (data / "ended").exists():
            try:
                if client.get(f"{url}/health").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.5)
    raise NotStarted((data / "log").read_text(errors="replace")[-6000:])
