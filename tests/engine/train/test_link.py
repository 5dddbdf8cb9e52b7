"""What a child says of its steps and its faults over the pipe."""

import multiprocessing
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from engine.plan import REPORT, Evaluated, Logged, Report, Saved, Started, Stepped, Warned
from engine.train.child import _fault
from engine.train.link import Link


@pytest.fixture
def pipe() -> Iterator[tuple[Link, Connection]]:
    ours, theirs = multiprocessing.Pipe()
    yield Link(theirs), ours
    # Not closed here: a link whose runner is gone ends its process.
    _open.append(ours)


_open: list[Connection] = []


def received(connection: Connection) -> Report:
    return REPORT.validate_json(connection.recv_bytes())


def step(number: int) -> Stepped:
    return Stepped(step=number, total_steps=9, epoch=0.0, metrics={})


def test_a_step_takes_what_passed_since_the_last_phase_ended(
    pipe: tuple[Link, Connection],
) -> None:
    link, runner = pipe
    phases: list[Report] = [
        Started(total_steps=9, rows=1, trained_tokens=1, trainable_parameters=1, resumed_step=0),
        step(1),
        Evaluated(step=1, metrics={}),
        Saved(step=1, path=Path("/x"), metrics={}),
        Warned(message="of something in the middle of a step"),
        step(2),
    ]
    for phase in phases:
        time.sleep(0.1)
        link.send(phase)
    told = [received(runner) for _ in phases]
    seconds = [report.seconds for report in told if isinstance(report, Stepped)]
    assert seconds == pytest.approx([0.1, 0.2], abs=0.08)


def test_a_fault_is_told_by_classes_and_places_and_never_by_its_text(
    pipe: tuple[Link, Connection], capfd: pytest.CaptureFixture[str]
) -> None:
    link, runner = pipe
    row = "a client's row"
    try:
        try:
            raise ValueError(row)
        except ValueError as error:
            raise KeyError(row) from error
    except KeyError as error:
        link.send(_fault(error))
    told = received(runner)
    assert isinstance(told, Logged)
    assert (told.event, told.level) == ("trainer.fault", "error")
    assert told.fields["error"] == "KeyError <- ValueError"
    assert "test_link.py" in str(told.fields["where"])
    assert row not in told.model_dump_json()
    assert capfd.readouterr().err == ""
