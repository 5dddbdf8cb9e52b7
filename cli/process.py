"""One role as a child process: a process group of its own, its log in a file."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

RESTART_AFTER_S = (0.5, 1.0, 2.0, 4.0)  # after the first, second, ... quick death in a row
QUICK_S = 20.0  # a life shorter than this counts as a quick death
QUICK_DEATHS = len(RESTART_AFTER_S) + 1  # so many in a row, and it is no use


@dataclass
class Role:
    """What to run: `luthier NAME ...`, with file descriptors it inherits."""

    name: str
    arguments: Sequence[str]
    environment: dict[str, str]
    log: Path
    fds: tuple[int, ...] = ()
    stop_s: float = 10.0


@dataclass
class Process:
    """A role's process, and those that came before it."""

    role: Role
    quick_deaths: int = 0
    _child: subprocess.Popen[bytes] | None = None
    _log: IO[bytes] | None = field(default=None, repr=False)
    _started_at: float = 0.0
    _restart_at: float = 0.0

    def start(self) -> None:
        if self._log is None:
            self._log = self.role.log.open("ab", buffering=0)
        self._started_at = time.monotonic()
        self._child = subprocess.Popen(
            [sys.executable, "-m", "cli.main", self.role.name, "--child", *self.role.arguments],
            stdin=subprocess.PIPE,  # closes with this process, however it ends
            stdout=self._log,
            stderr=self._log,
            env=self.role.environment,
            pass_fds=self.role.fds,
            process_group=0,
        )

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    def ended(self) -> int | None:
        """The exit code of a process that has ended, negative for a signal; once."""
        child = self._child
        if child is None or _waiting(child.pid) is None:
            return None
        self._end_group()
        code = child.wait()
        self._close()
        quick = time.monotonic() - self._started_at < QUICK_S
        self.quick_deaths = self.quick_deaths + 1 if quick else 1
        delay_s = RESTART_AFTER_S[min(self.quick_deaths, len(RESTART_AFTER_S)) - 1]
        self._restart_at = time.monotonic() + delay_s
        return code

    @property
    def hopeless(self) -> bool:
        return self.quick_deaths >= QUICK_DEATHS

    def restart_if_due(self) -> bool:
        if self._child is not None or time.monotonic() < self._restart_at:
            return False
        self.start()
        return True

    def ask_to_stop(self) -> None:
        if self._child is not None:
            # Not Popen.terminate: that reaps a child that has ended, and its group with it.
            os.kill(self._child.pid, signal.SIGTERM)

    def alive(self) -> bool:
        return self._child is not None and _waiting(self._child.pid) is None

    def finish(self) -> None:
        """Reap it; what has not ended by itself is killed, with all it started."""
        if self._child is not None:
            self._end_group()
            self._child.wait()
            self._close()
        if self._log is not None:
            self._log.close()
            self._log = None

    def _end_group(self) -> None:
        """Kill what is left of its group. It is not reaped yet, so the group is still its own."""
        assert self._child is not None
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, signal.SIGKILL)

    def _close(self) -> None:
        if self._child is not None and self._child.stdin is not None:
            self._child.stdin.close()
        self._child = None


def _waiting(pid: int) -> object | None:
    """Whether a child has ended; it stays unreaped."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)


def how(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
