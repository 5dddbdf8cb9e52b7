"""Clients that are programs of their own, from the environments that `make env-clients` makes."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
BIN = HERE.parents[1] / ".venv-clients" / "bin"
MISSING = "run `make env-clients`"
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # or it fetches one
    "NO_PROXY": "127.0.0.1",
}


def program(name: str) -> Path:
    """A program of .venv-clients; skips the test where there is none."""
    if not (BIN / name).is_file():
        pytest.skip(f"there is no {name} in .venv-clients; {MISSING}")
    return BIN / name


def node() -> str:
    """Node, where the script's packages are installed too; skips the test where not."""
    found = shutil.which("node")
    if found is None:
        pytest.skip("there is no node on this machine")
    if not (HERE / "npm" / "node_modules" / "openai").is_dir():
        pytest.skip(f"openai's npm package is not installed; {MISSING}")
    return found


def environment(**more: str) -> dict[str, str]:
    """This process's own, without proxies, and with nothing fetched from elsewhere."""
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}  # noqa: TID251  # programs need it
    return kept | QUIET | more


def run(*command: str | Path, cwd: Path, timeout_s: float = 240, **more: str) -> str:
    """What a program prints; it must end well."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    return done.stdout
