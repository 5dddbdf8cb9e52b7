"""The child's end of the pipe to its runner: reports up as JSON, directives down."""

import os
import threading
import time
from multiprocessing.connection import Connection
from typing import Literal

from engine.plan import Evaluated, Failed, Logged, Report, Saved, Started, Stepped

PHASES = (Started, Stepped, Evaluated, Saved)  # what ends before the next step begins
ORPHANED = 75  # EX_TEMPFAIL: the runner is gone, so nothing this process does counts


class Link:
    """`directive` is what the runner last asked for; a dead runner ends this process at once.

    Of the processes that share a run only the first one reports; the others tell of a failure.
    """

    def __init__(self, connection: Connection, *, first: bool = True) -> None:
        self._connection, self._first = connection, first
        self._sending = threading.Lock()
        self._phase_began = time.monotonic()
        self.directive: Literal["continue", "cancel", "pause"] = "continue"
        threading.Thread(target=self._listen, daemon=True, name="directives").start()

    def send(self, report: Report) -> None:
        if not self._first and not isinstance(report, Failed):
            return
        with self._sending:
            if isinstance(report, PHASES):
                report = self._timed(report)
            try:
                self._connection.send_bytes(report.model_dump_json().encode())
            except OSError:
                os._exit(ORPHANED)

    def log(self, event: str, **fields: str | int | float | list[str]) -> None:
        """A line of the operator's log."""
        self.send(Logged(event=event, fields=fields))

    def _timed(self, report: Report) -> Report:
        began, self._phase_began = self._phase_began, time.monotonic()
        if not isinstance(report, Stepped):
            return report
        return report.model_copy(update={"seconds": self._phase_began - began})

    def _listen(self) -> None:
        while True:
            try:
                word = self._connection.recv_bytes().decode()
            except (EOFError, OSError):
                os._exit(ORPHANED)
            if word == "cancel":
                self.directive = "cancel"
            elif word == "pause" and self.directive != "cancel":
                self.directive = "pause"
