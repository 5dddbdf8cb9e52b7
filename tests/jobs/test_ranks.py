"""Several processes as one: whose word counts, and what an end means."""

import multiprocessing
from multiprocessing import connection
from typing import Literal

import pytest

from engine.plan import PROCESS_LOST, REPORT, Failed, Report, Stopped, Warned
from jobs.ranks import Ranks


class Rank:
    """One end of a pipe whose other end a test speaks through."""

    def __init__(self, code: int = 0) -> None:
        self.link: connection.Connection
        self.link, self.other = multiprocessing.Pipe()
        self.code, self.told, self.killed = code, list[str](), False

    def says(self, *reports: Report) -> None:
        for report in reports:
            self.other.send_bytes(report.model_dump_json().encode())

    def receive(self, timeout_s: float) -> Report | None:
        return REPORT.validate_json(self.link.recv_bytes()) if self.link.poll(timeout_s) else None

    def tell(self, directive: Literal["cancel", "pause"]) -> None:
        self.told.append(directive)

    def kill(self) -> None:
        self.killed = True
        self.link.close()
        self.other.close()

    def exit_code(self) -> int | None:
        return self.code


LOST = Failed(code=PROCESS_LOST, message="Another process ended.", retryable=True)
FULL = Failed(code="out_of_memory", message="Lower something.")
HELLO = Warned(message="hello")
DONE = Stopped(directive="pause")


def test_the_first_one_speaks_and_is_told() -> None:
    first, second = Rank(), Rank()
    ranks = Ranks([first, second])
    first.says(HELLO, DONE)
    ranks.tell("pause")
    assert [ranks.receive(0.1), ranks.receive(0.1), ranks.receive(0)] == [HELLO, DONE, None]
    assert (first.told, second.told) == (["pause"], [])
    ranks.kill()
    assert first.killed
    assert second.killed


def test_the_failure_of_another_one_is_the_runs() -> None:
    first, second = Rank(), Rank()
    ranks = Ranks([first, second])
    first.says(HELLO)
    second.says(FULL)
    assert ranks.receive(0.1) == FULL
    ranks.kill()


def test_a_process_that_ended_well_before_the_first_one_is_no_failure() -> None:
    first, second = Rank(), Rank(code=0)
    ranks = Ranks([first, second])
    second.other.close()
    assert ranks.receive(0.1) is None
    first.says(DONE)
    assert ranks.receive(0.1) == DONE
    ranks.kill()


def test_a_killed_process_is_the_cause_and_not_what_the_first_one_saw_of_it() -> None:
    first, second = Rank(code=1), Rank(code=-9)
    ranks = Ranks([first, second])
    first.says(LOST)
    second.other.close()
    with pytest.raises(EOFError):
        ranks.receive(0.1)
    assert ranks.exit_code() == -9
    ranks.kill()


def test_a_cause_that_comes_later_than_its_effect_is_waited_for() -> None:
    first, second, third = Rank(), Rank(), Rank()
    ranks = Ranks([first, second, third])
    third.says(LOST)
    second.says(FULL)
    first.says(LOST)
    assert ranks.receive(0.1) == FULL
    ranks.kill()
