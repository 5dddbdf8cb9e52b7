"""The clock of the tests stops with the machine, and with nothing else."""

import os
import signal
import time

import pytest

from tests import clock


def test_what_the_machine_stood_still_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with clock.watched():
        assert clock._sleeper is not None
        sleeper = clock._sleeper._process.pid
        began, began_at, at = time.monotonic(), time.time(), clock.now()
        os.kill(sleeper, signal.SIGSTOP)  # as all of this machine's processes would be
        time.sleep(0.4)
        os.kill(sleeper, signal.SIGCONT)
        took, ran = clock.now() - at, clock.ran_s(began_at, time.time())
        whole = time.monotonic() - began
    assert whole >= 0.4
    assert max(took, ran) < whole - 0.3


def test_what_a_test_waits_for_counts() -> None:
    at = clock.now()
    time.sleep(0.2)
    assert clock.now() - at > 0.1
