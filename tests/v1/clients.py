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
    """A program of .venv-clients."""
    return BIN / name


def needs(name: str) -> pytest.MarkDecorator:
    """Skips tests before they make a house, where a program is missing that they are about."""
    there = (BIN / name).is_file() if name != "node" else _has_node()
    return pytest.mark.skipif(not there, reason=f"there is no {name} for its tests; {MISSING}")


def _has_node() -> bool:
    return bool(shutil.which("node")) and (HERE / "npm" / "node_modules" / "openai").is_dir()


def node() -> str:
    found = shutil.which("node")
    assert found is not None
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
