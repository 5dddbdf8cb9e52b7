"""Who fails while the machine stands still is asked again, who fails on one that runs is not."""

import subprocess
import sys
from pathlib import Path

from tests.workers import REPO

TESTS = """
import os, signal, time
import pytest
from tests import clock

runs = {"unlucky": 0, "broken": 0}

@pytest.fixture(scope="module", autouse=True)
def watched():
    with clock.watched():
        yield

def test_unlucky():
    runs["unlucky"] += 1
    if runs["unlucky"] == 1:
        sleeper = clock._sleeper._process.pid
        os.kill(sleeper, signal.SIGSTOP)
        time.sleep(0.6)
        os.kill(sleeper, signal.SIGCONT)
        assert False, "a lease ran out"

def test_broken():
    runs["broken"] += 1
    assert runs["broken"] > 1, "a fault of ours"

def test_after():
    assert runs == {"unlucky": 2, "broken": 1}
"""


def test_a_test_is_run_once_more_only_where_the_machine_stood_still(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    options = ["-q", "-p", "tests.second_chance", "-p", "no:randomly", "-p", "no:cacheprovider"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--rootdir", str(tmp_path), str(tmp_path)],
        cwd=REPO,
        capture_output=True,
        text=True,
    )
    assert "1 failed, 2 passed" in ran.stdout, ran.stdout + ran.stderr
    assert "FAILED" in ran.stdout
    assert "test_broken" in ran.stdout.partition("short test summary")[2]
    assert "test_unlucky: run again, as the machine stood still for 0." in ran.stdout
    assert "AssertionError: a lease ran out" in ran.stdout
