"""One role as a process: it ends with its parent, and gives up when it only ever dies."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cli import process
from cli.process import QUICK_DEATHS, Process, Role, how
from tests.cli.conftest import wait_for
from tests.workers import REPO


@pytest.fixture
def role(tmp_path: Path) -> Role:
    """A role that ends at once, with exit code 2: there is none of this name."""
    environment = {"PYTHONPATH": str(REPO), "PATH": "/usr/bin:/bin"}
    return Role("nobody", [], environment, tmp_path / "nobody.log")


def test_a_role_that_dies_again_and_again_is_hopeless(
    role: Role, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "RESTART_AFTER_S", (0.0,))
    child = Process(role)
    child.start()
    deaths = 0
    while not child.hopeless:
        code = child.ended()
        deaths += code is not None
        assert code in (None, 2)
        child.restart_if_due()
        time.sleep(0.01)
    child.finish()

    assert deaths == QUICK_DEATHS
    assert "No such command 'nobody'" in role.log.read_text()


def test_a_restart_waits_longer_each_time(role: Role) -> None:
    child = Process(role)
    child.start()
    wait_for(lambda: child.ended() is not None, 90)

    assert not child.restart_if_due()
    time.sleep(process.RESTART_AFTER_S[0])
    assert child.restart_if_due()
    child.finish()


def test_exit_codes_are_told_in_words() -> None:
    assert how(3) == "ended with exit code 3"
    assert how(-9) == "was ended by SIGKILL"
    assert how(-64) == "was ended by SIGRTMAX"
    assert how(-99) == "was ended by signal 99"


def test_what_a_role_has_started_ends_with_the_parent(tmp_path: Path) -> None:
    grandchild = tmp_path / "grandchild"
    code = (
        "import subprocess, sys, time; from cli.family import end_with_parent; "
        "sleeper = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
        f"open({str(grandchild)!r}, 'w').write(str(sleeper.pid) + '\\n'); "
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "end_with_parent(); time.sleep(600)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPO, stdin=subprocess.PIPE, process_group=0
    )
    assert child.stdin is not None
    wait_for(lambda: grandchild.exists() and grandchild.read_text().endswith("\n"), 30)
    sleeper = psutil.Process(int(grandchild.read_text()))
    child.stdin.close()  # as the kernel does when the parent ends

    assert child.wait(60) == -9
    wait_for(lambda: not sleeper.is_running() or sleeper.status() == psutil.STATUS_ZOMBIE, 60)
