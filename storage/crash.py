"""Named moments between two durable writes. Tests make a process end, or stop, at one of them."""

import os
import signal

_armed = ""
_passes = 0
_signal = signal.SIGKILL


def arm(point: str) -> None:
    """Die at this point: `name`, or `name:3` for its third pass. `stop name`: stop there."""
    global _armed, _passes, _signal
    how, _, where = point.rpartition(" ")
    _armed, _, count = where.partition(":")
    _passes = int(count or 1)
    _signal = signal.SIGSTOP if how == "stop" else signal.SIGKILL


def crash_point(name: str) -> None:
    """Nothing, unless a test has armed it: then this process ends as by `kill -9`."""
    global _passes
    if name == _armed:
        _passes -= 1
        if _passes == 0:
            os.kill(os.getpid(), _signal)
