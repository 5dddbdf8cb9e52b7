"""Where an attempt's training runs. `LocalLauncher`: child processes, forked from a server that has
torch.
"""

import importlib
import multiprocessing
from collections.abc import Sequence
from multiprocessing import connection, forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Literal, Protocol

from engine.plan import REPORT, Plan, Report, TrainPlan
from jobs.ranks import Ranks

PRELOAD = "engine.train.preload"
TRAINER = "engine.train.child"
EXIT_S = 10.0  # from a child's last word to its end: a large one takes its time to be cleared away


class Running(Protocol):
    """An attempt that has been started."""

    def receive(self, timeout_s: float) -> Report | None:
        """The next report, or None when none came in time. Raises EOFError after the last one."""

    def tell(self, directive: Literal["cancel", "pause"]) -> None: ...

    def kill(self) -> None:
        """End it now, and wait until it has ended."""

    def exit_code(self) -> int | None:
        """How it ended: negative for a signal; None while it runs."""


class Launcher(Protocol):
    def warm_up(self) -> None:
        """Get ready for a first attempt, without waiting."""

    def start(self, plan: Plan) -> Running: ...


class LocalLauncher:
    """Children on this machine, one a GPU that the plan asks for.

    They share what the fork server has imported, and nothing else.
    """

    def __init__(self, preload: Sequence[str] = (PRELOAD,), trainer: str = TRAINER) -> None:
        self._trainer = trainer
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(preload))

    def warm_up(self) -> None:
        forkserver.ensure_running()

    def start(self, plan: Plan) -> Running:
        if not isinstance(plan, TrainPlan) or plan.spread.processes == 1:
            return self._fork(plan)
        spreads = [plan.spread.at(rank) for rank in range(plan.spread.processes)]
        return Ranks([self._fork(plan.model_copy(update={"spread": its})) for its in spreads])

    def _fork(self, plan: Plan) -> "LocalChild":
        ours, theirs = self._context.Pipe(duplex=True)
        process = self._context.Process(
            target=_child,
            args=(self._trainer, theirs, plan.model_dump_json()),
            name="trainer",
            daemon=True,
        )
        process.start()
        theirs.close()
        return LocalChild(process, ours)


def _child(trainer: str, link: connection.Connection, plan_json: str) -> None:
    # By name: this module belongs to the torch-free side and is imported by it.
    importlib.import_module(trainer).main(link, plan_json)


class LocalChild:
    def __init__(self, process: ForkServerProcess, link: connection.Connection) -> None:
        self._process, self.link = process, link

    def receive(self, timeout_s: float) -> Report | None:
        try:
            if not self.link.poll(timeout_s):
                return None
            return REPORT.validate_json(self.link.recv_bytes())
        except OSError as error:  # the other end was torn away
            raise EOFError from error

    def tell(self, directive: Literal["cancel", "pause"]) -> None:
        try:
            self.link.send_bytes(directive.encode())
        except OSError:
            return  # it has ended: receive() will say so

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self.link.close()

    def exit_code(self) -> int | None:
        self._process.join(timeout=EXIT_S)
        return self._process.exitcode
