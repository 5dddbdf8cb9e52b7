"""What a child says of its steps and its faults over the pipe."""

import json
import subprocess
import sys

import pytest

from engine.train.child import _fault
from tests.workers import REPO

# In a process of its own: a link ends its process when the runner's end of the pipe is gone.
STEPS = """
import json, multiprocessing, os, time
from pathlib import Path
from engine.plan import REPORT, Evaluated, Saved, Started, Stepped, Warned
from engine.train.link import Link

def step(number):
    return Stepped(step=number, total_steps=9, epoch=0.0, metrics={})

ours, theirs = multiprocessing.Pipe()
link = Link(theirs)
phases = [
    Started(total_steps=9, rows=1, trained_tokens=1, trainable_parameters=1, resumed_step=0),
    step(1),
    Evaluated(step=1, metrics={}),
    Saved(step=1, path=Path("/x"), metrics={}),
    Warned(message="of something in the middle of a step"),
    step(2),
]
sent = []
for phase in phases:
    time.sleep(0.1)
    link.send(phase)
    sent.append(time.monotonic())
told = [REPORT.validate_json(ours.recv_bytes()) for _ in phases]
seconds = [report.seconds for report in told if report.type == "step"]
print(json.dumps([seconds, [sent[1] - sent[0], sent[5] - sent[3]]]), flush=True)
os._exit(0)
"""


def test_a_step_takes_what_passed_since_the_last_phase_ended() -> None:
    told = subprocess.run(
        [sys.executable, "-c", STEPS], cwd=REPO, capture_output=True, text=True, check=True
    )
    seconds, passed = json.loads(told.stdout)
    assert seconds == pytest.approx(passed, abs=0.05)


def test_a_fault_is_told_by_classes_and_places_and_never_by_its_text() -> None:
    row = "a client's row"
    try:
        try:
            raise ValueError(row)
        except ValueError as error:
            raise KeyError(row) from error
    except KeyError as error:
        told = _fault(error)
    assert (told.event, told.level) == ("trainer.fault", "error")
    assert told.fields["error"] == "KeyError <- ValueError"
    assert "test_link.py" in str(told.fields["where"])
    assert row not in told.model_dump_json()
