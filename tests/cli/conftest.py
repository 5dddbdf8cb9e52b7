"""The `luthier` command as real processes, each with a data folder and a base model of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.bases import make_base
from tests.workers import REPO


class Luthier:
    """Runs commands on one data folder."""

    def __init__(self, data_dir: Path, base: Path) -> None:
        self.data_dir = data_dir
        self.environment = {
            **os.environ,  # noqa: TID251  # a child needs the test's own
            "LUTHIER_DATA_DIR": str(data_dir),
            "LUTHIER_BASE_MODELS": json.dumps({"tiny": str(base)}),
        }

    def start(self, *arguments: str, **settings: str) -> subprocess.Popen[str]:
        changed = {f"LUTHIER_{name.upper()}": value for name, value in settings.items()}
        return subprocess.Popen(
            [sys.executable, "-m", "cli.main", *arguments],
            cwd=REPO,
            env=self.environment | changed,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str, code: int = 0, **settings: str) -> str:
        """What a command prints, stdout and stderr together, when it ends with `code`."""
        with self.start(*arguments, **settings) as process:
            said, _ = process.communicate(timeout=240)
        assert process.returncode == code, said
        return said

    def serve(self, *arguments: str, **settings: str) -> "Serving":
        return Serving(self, self.start(*SERVE, *arguments, **settings))


SERVE = ("serve", "--port", "0", "--inference-port", "0")


class Serving:
    """A `luthier serve` that is up, and the processes it has started."""

    def __init__(self, luthier: Luthier, process: subprocess.Popen[str]) -> None:
        self.process = process
        note = luthier.data_dir / "serve.json"
        wait_for(lambda: process.poll() is not None or _holder(note) == process.pid, 120)
        assert process.poll() is None, process.communicate()[0]
        self.url = str(_read(note)["url"])
        self.family = self.look()

    def look(self) -> list[psutil.Process]:
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def child(self, role: str) -> psutil.Process | None:
        """The process that runs a role, while there is one."""
        for process in self.look()[1:]:
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if {role, "--child"} <= set(process.cmdline()):
                    return process
        return None

    def gone(self, within_s: float) -> list[psutil.Process]:
        """What is left of the family after a while; empty when all have ended."""
        return living(self.family, within_s)

    def stop(self) -> str:
        """End it as an operator does; what it said."""
        self.family = self.look()
        self.process.send_signal(signal.SIGTERM)
        said, _ = self.process.communicate(timeout=120)
        assert self.process.returncode == 0, said
        return said

    def clear(self) -> None:
        for process in self.family:
            if process.is_running():
                process.kill()
        self.process.communicate()


def living(processes: list[psutil.Process], within_s: float) -> list[psutil.Process]:
    """Those that still run after a while; one that waits to be reaped has ended."""

    def alive() -> list[psutil.Process]:
        found = []
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    deadline = time.monotonic() + within_s
    while alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    return alive()


def _holder(note: Path) -> object:
    """The process that has announced where it serves."""
    said = _read(note)
    return said["pid"] if said.get("url") else None


def _read(note: Path) -> dict[str, Any]:
    try:
        said: dict[str, Any] = json.loads(note.read_text())
    except (OSError, ValueError):
        return {}
    return said


def wait_for(true: Callable[[], Any], within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(0.05)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def luthier(tmp_path: Path, base: Path) -> Luthier:
    return Luthier(tmp_path / "data", base)


@pytest.fixture
def serving(luthier: Luthier) -> Iterator[Serving]:
    served = luthier.serve()
    yield served
    served.clear()


@pytest.fixture(scope="session")
def shared_serving(
    tmp_path_factory: pytest.TempPathFactory, base: Path
) -> Iterator[tuple[Luthier, Serving]]:
    """A service that tests share, and the command on its folder."""
    luthier = Luthier(tmp_path_factory.mktemp("shared") / "data", base)
    served = luthier.serve()
    yield luthier, served
    served.stop()
    served.clear()


@pytest.fixture
def shared(shared_serving: tuple[Luthier, Serving]) -> Luthier:
    """The command, where a service is up."""
    return shared_serving[0]
