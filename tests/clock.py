"""Time as the machine ran: what a test holds the product to, without what nothing ran in.

A process beside the tests only sleeps, and knows by oversleeping that the machine stood still: a
virtual machine that was not scheduled, a container that was throttled. Nobody's code is slow then.
"""

import contextlib
import json
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

TICK_S = 0.01
LATE_S = 0.05  # that a sleeper may oversleep on a machine that is only busy


class _Sleeper:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self.pauses_s(0.0, 0.0)  # it is there

    def pauses_s(self, since: float, until: float) -> list[float]:
        """The pauses within a time (of time.monotonic()) in which nothing ran."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps([since, until]).encode() + b"\n")
            found: list[float] = json.loads(self._process.stdout.readline())
            return found

    def close(self) -> None:
        with self._process:
            pass  # its pipe is closed, which is the order to end


_sleeper: _Sleeper | None = None


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Inside, `now` and `ran_s` leave out what the machine stood still; elsewhere it never does."""
    global _sleeper
    before, _sleeper = _sleeper, _Sleeper()
    try:
        yield
    finally:
        _sleeper.close()
        _sleeper = before


def now() -> float:
    """As time.monotonic(), of a clock that stops while the machine does."""
    at = time.monotonic()
    return at - sum(pauses_s(0.0, at))


def ran_s(since: float, until: float) -> float:
    """Seconds between two times of day (time.time()) in which the machine ran."""
    shift = time.monotonic() - time.time()
    return until - since - sum(pauses_s(since + shift, until + shift))


def pauses_s(since: float, until: float) -> list[float]:
    """How long the machine stood still, each time, between two of time.monotonic()."""
    return _sleeper.pauses_s(since, until) if _sleeper else []


def _sleep() -> None:
    """Answers each line of standard input, and ends with it."""
    pauses: list[tuple[float, float]] = []
    last = time.monotonic()
    while True:
        asked, _, _ = select.select([sys.stdin.buffer], [], [], TICK_S)
        at = time.monotonic()
        if at - last > TICK_S + LATE_S:
            pauses.append((last + TICK_S, at))
        last = at
        if not asked:
            continue
        line = sys.stdin.buffer.readline()
        if not line:
            return
        since, until = json.loads(line)
        within = [(max(begin, since), min(end, until)) for begin, end in pauses]
        found = [end - begin for begin, end in within if end > begin]
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _sleep()
