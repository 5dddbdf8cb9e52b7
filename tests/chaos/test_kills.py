"""`kill -9` of workers, at named points and at random ones: nothing is lost, nothing is twice."""

import signal
import time

import pytest

from jobs.model import Status
from tests.chaos.conftest import Make
from tests.chaos.house import LEASE_S, SWEEP_S, lost
from tests.chaos.trainer import Script
from tests.record import Record

START_S = 2.0  # of a worker process on a busy machine, with its fork server
EVERY = 5
POINTS = [
    "claimed",
    "inputs_fetched",
    "stepped:8",
    "checkpoint_uploaded:2",
    "tensors_uploaded",
    "manifest_put",
    "manifest_written",
    "row_finished",
    "before_ack",
]


@pytest.mark.parametrize("stack", ["embedded", "production"])
def test_a_worker_that_is_killed_at_any_point_loses_nothing(
    request: pytest.FixtureRequest, record: Record, stack: str
) -> None:
    """One job a point, each on a worker of its own that dies there, then one that lives."""
    make: Make = request.getfixturevalue("make_house" if stack == "embedded" else "production")
    house = make()
    ids, died, again = [], 0, 0.0
    for point in POINTS:
        ids.append(house.post(Script(steps=12, step_s=0.01), checkpoint_every=EVERY))
        with house.nursery.worker(house.settings, crash_at=point) as doomed:
            died += doomed.wait(20) == -signal.SIGKILL
        killed_at = time.time()
        if house.job(ids[-1]).status is not Status.SUCCEEDED:
            with house.at_work():
                house.wait(ids[-1], timeout_s=20)
            again = max(again, house.attempts(ids[-1])[1]["claimed_at"] - killed_at)
    jobs = [house.job(job_id) for job_id in ids]
    record("R1", "workers killed at named points", died, exactly=len(POINTS))
    record("R1", "jobs lost", lost(jobs), exactly=0)
    record("R1", "adapters twice", len(house.adapters_of(ids)) - len(ids), exactly=0)
    redone = max(house.redone_steps(job_id) for job_id in ids)
    record("R1", f"steps redone, of {EVERY} between checkpoints", redone, at_most=EVERY)
    promised = LEASE_S + SWEEP_S + START_S
    record("R1", f"running again, lease {LEASE_S:g} s", again, "s", at_most=promised)
    house.check()
