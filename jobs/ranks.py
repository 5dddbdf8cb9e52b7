"""Several processes that share one training run, as one: the first speaks for all of them."""

import time
from collections.abc import Sequence
from multiprocessing import connection
from typing import Literal, Protocol

from engine.plan import PROCESS_LOST, Failed, Report

CAUSE_S = 5.0  # from what one process sees of another's end to that one's own last word


class Rank(Protocol):
    """One of the processes; `link` becomes readable when it has something to say, or has ended."""

    @property
    def link(self) -> connection.Connection: ...

    def receive(self, timeout_s: float) -> Report | None: ...
    def tell(self, directive: Literal["cancel", "pause"]) -> None: ...
    def kill(self) -> None: ...
    def exit_code(self) -> int | None: ...


class Ranks:
    """A `Running`. What any of its processes dies of ends the attempt, with that as its cause.

    They agree among themselves on when to stop, so the first one alone is told to.
    """

    def __init__(self, ranks: Sequence[Rank]) -> None:
        self._ranks, self._first = tuple(ranks), ranks[0]
        self._quiet = list(ranks[1:])  # that still run
        self._exit_code: int | None = None  # of one that died

    def receive(self, timeout_s: float) -> Report | None:
        """The first one's next report, or another one's failure. Raises EOFError when one died."""
        links = [rank.link for rank in (self._first, *self._quiet)]
        if not connection.wait(links, timeout_s):
            return None
        if failed := self._failure():
            return failed
        if not self._first.link.poll():
            return None
        try:
            report = self._first.receive(0)
        except EOFError:
            self._exit_code = self._first.exit_code()
            raise
        if isinstance(report, Failed) and report.code == PROCESS_LOST:
            return self._cause() or report
        return report

    def _failure(self) -> Failed | None:
        """What one of the others said of its end. Raises EOFError where it ended without a word."""
        for rank in list(self._quiet):
            try:
                report = rank.receive(0)
            except EOFError:
                self._quiet.remove(rank)
                if code := rank.exit_code():
                    self._exit_code = code
                    raise
                continue  # it had nothing more to do
            if isinstance(report, Failed) and report.code != PROCESS_LOST:
                return report
        return None

    def _cause(self) -> Failed | None:
        """Why one was cut off from another, if that one says it. Raises EOFError as above."""
        until = time.monotonic() + CAUSE_S
        while self._quiet and (left := until - time.monotonic()) > 0:
            connection.wait([rank.link for rank in self._quiet], left)
            if failed := self._failure():
                return failed
        return None

    def tell(self, directive: Literal["cancel", "pause"]) -> None:
        self._first.tell(directive)

    def kill(self) -> None:
        for rank in self._ranks:
            rank.kill()

    def exit_code(self) -> int | None:
        return self._first.exit_code() if self._exit_code is None else self._exit_code
