"""Worker processes in milliseconds: forked from one process that has imported everything.

Each is a real process, in a session of its own, that runs `jobs.worker.run`. Their children are
real children, of a fork server of their own; only the trainer in them is tests/chaos/trainer.py.
"""

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from jobs.settings import REPO, Settings

TRAINER = "tests.chaos.trainer"


class Worker:
    """A worker process that the nursery has started."""

    def __init__(self, nursery: "Nursery", pid: int) -> None:
        self._nursery, self.pid = nursery, pid

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """As `kill -9` does it; returns when it has ended."""
        self.signal(signal.SIGKILL)
        self.wait(60)

    def wait(self, timeout_s: float) -> int | None:
        """Its exit code, negative for a signal; None where it still runs."""
        return self._nursery.ask(wait=self.pid, timeout_s=timeout_s)

    @property
    def alive(self) -> bool:
        return self.wait(0) is None


class Nursery:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.nursery"],
            cwd=REPO,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def ask(self, **order: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, settings: Settings, *, clock_s: float = 0.0, **changes: Any) -> Worker:
        """A worker of these settings, whose clock is `clock_s` fast; `changes` may name a crash
        point.
        """
        plain = {
            name: value.get_secret_value() if isinstance(value, SecretStr) else value
            for name, value in settings
        } | changes
        order = json.loads(json.dumps(plain, default=str))
        return Worker(self, self.ask(start=order, clock_s=clock_s))

    @contextmanager
    def worker(self, settings: Settings, **changes: Any) -> Iterator[Worker]:
        """A worker that is ended with the block, if it has not ended by itself."""
        worker = self.start(settings, **changes)
        try:
            yield worker
        finally:
            self.end(worker)

    def end(self, worker: Worker) -> None:
        if worker.alive:
            worker.signal(signal.SIGCONT)
            worker.signal(signal.SIGTERM)
            if worker.wait(60) is None:
                worker.kill()

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()  # the order to end
        self._process.wait(90)
        self._process.stdout.close()


def _serve() -> None:
    """Do what is asked, line by line. Single-threaded: it forks."""
    import boto3  # noqa: F401  # so that no worker has to import it
    import psycopg  # noqa: F401

    import jobs.worker  # noqa: F401
    import storage.s3  # noqa: F401

    ended: dict[int, int] = {}
    children: set[int] = set()
    for line in sys.stdin:
        order = json.loads(line)
        if "start" in order:
            pid = os.fork()
            if pid == 0:
                _become_worker(order["start"], order["clock_s"])
            children.add(pid)
            answer: int | None = pid
        else:
            answer = _wait(order["wait"], order["timeout_s"], ended)
            if answer is not None:
                children.discard(order["wait"])
        print(json.dumps(answer), flush=True)
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def _wait(pid: int, timeout_s: float, ended: dict[int, int]) -> int | None:
    deadline = time.monotonic() + timeout_s
    while pid not in ended:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            ended[pid] = os.waitstatus_to_exitcode(status)
        elif time.monotonic() >= deadline:
            return None
        else:
            time.sleep(0.005)
    return ended[pid]


def _become_worker(values: dict[str, Any], clock_s: float) -> None:
    """Never returns."""
    code, right = 1, time.time
    time.time = lambda: right() + clock_s
    try:
        os.setsid()
        settings = Settings.model_validate(values)
        _redirect(settings.data_dir / "worker.log")
        from cli.logs import configure_logging
        from jobs.launcher import LocalLauncher
        from jobs.worker import run

        configure_logging("json", "worker")
        run(settings, LocalLauncher(preload=(TRAINER,), trainer=TRAINER))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _redirect(log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    nothing = os.open(os.devnull, os.O_RDWR)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    os.dup2(file, 2)


if __name__ == "__main__":
    _serve()
