"""Named moments between two durable writes. Tests make a process kill itself at one of them."""

import os
import signal

_armed = ""
_passes = 0


def arm(point: str) -> None:
    """Die at this point: `name`, or `name:3` for the third time that it is passed."""
    global _armed, _passes
    _armed, _, count = point.partition(":")
    _passes = int(count or 1)


def crash_point(name: str) -> None:
    """Nothing, unless a test has armed it: then this process ends as by `kill -9`."""
    global _passes
    if name == _armed:
        _passes -= 1
        if _passes == 0:
            os.kill(os.getpid(), signal.SIGKILL)
