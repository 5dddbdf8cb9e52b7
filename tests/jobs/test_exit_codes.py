"""One attempt by its number: whether it runs at all, and what its process ends with."""

from collections.abc import Callable

from jobs.exit_codes import Exit, exit_of
from jobs.model import Status
from tests.jobs.test_runner import Scripted, finish, runner_of
from tests.workers import House, conversations


def test_an_attempt_runs_when_it_is_the_next_one_and_only_once(
    make_house: Callable[..., House],
) -> None:
    house = make_house()
    job_id = house.submit(house.add_dataset(conversations(3)))
    runner, _ = runner_of(house, Scripted([finish]))
    assert not runner.run_attempt(job_id, 2)
    assert house.job(job_id).attempt == 0
    assert runner.run_attempt(job_id, 1)
    assert not runner.run_attempt(job_id, 1)
    job = house.job(job_id)
    assert (job.status, exit_of(job, 1)) == (Status.SUCCEEDED, Exit.DONE)


def test_every_end_of_a_job_has_its_exit_code(make_house: Callable[..., House]) -> None:
    house = make_house()
    job = house.job(house.submit(house.add_dataset(conversations(3))))
    mine = job.model_copy(update={"attempt": 2})
    found = {s: exit_of(mine.model_copy(update={"status": s}), 2) for s in Status}
    assert found == {
        Status.SUCCEEDED: Exit.DONE,
        Status.FAILED: Exit.FAILED,
        Status.QUEUED: Exit.RETRYABLE,
        Status.RUNNING: Exit.RETRYABLE,
        Status.PAUSED: Exit.STOPPED,
        Status.CANCELLED: Exit.STOPPED,
    }
    assert exit_of(mine, 1) == Exit.SUPERSEDED
    assert [int(end) for end in Exit] == [0, 10, 11, 12, 13], "others rely on these"
