"""A full disk and memory that runs out: the job fails with its cause, the worker goes on."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.model import Status
from tests.chaos.conftest import Make
from tests.chaos.house import ChaosHouse
from tests.chaos.trainer import Script, row_of
from tests.record import Record

DISK_MIB = 16


@pytest.fixture
def small_disk(make_house: Make, record: Record) -> Iterator[ChaosHouse]:
    """A house whose workers work on a disk of a few MiB."""
    if os.geteuid() != 0:
        record.not_run("R10", "mounting a small disk takes root")
        pytest.skip("mounting a small disk takes root")
    house = make_house()
    work = house.settings.data_dir / "work"
    work.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(work)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        record.not_run("R10", "no file system may be mounted here")
        pytest.skip(f"no file system may be mounted here: {mounted.stderr}")
    try:
        yield house
    finally:
        subprocess.run(["umount", "-l", str(work)], check=True)


def used_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_disk_that_is_full_fails_the_job_and_not_the_worker(
    small_disk: ChaosHouse, record: Record
) -> None:
    house = small_disk
    by_trainer = house.post(Script(at={4: "fill"}))
    too_large = row_of(Script()) | {"note": "x" * (DISK_MIB << 20)}
    by_worker = house.submit(house.add_dataset([too_large]))  # its rows do not fit
    with house.at_work() as (worker,):
        failed = [house.wait(by_trainer), house.wait(by_worker)]
        following = house.wait(house.post())
        assert worker.alive
        left = used_bytes(house.settings.data_dir / "work")
    codes = {job.error.code for job in failed if job.error}
    record("R10", "the job's error", sorted(codes)[0], exactly="disk_full")
    assert codes == {"disk_full"}
    record("R10", "bytes left on the disk", left, exactly=0)
    record("R10", "the next job", following.status.value, exactly="succeeded")
    house.check()


def test_memory_that_runs_out_ends_the_job_with_advice_and_the_next_begins(
    make_house: Make, record: Record
) -> None:
    house = make_house()
    refused = house.post(Script(at={3: "hog"}))  # an allocation fails
    killed = house.post(Script(at={3: "kill"}))  # the kernel ends the process
    following = house.post()
    with house.at_work() as (worker,):
        jobs = house.wait_all([refused, killed, following])
        assert worker.alive
    assert [job.status for job in jobs[:2]] == [Status.FAILED] * 2
    codes = {job.error.code for job in jobs[:2] if job.error}
    record("R11", "the job's error", sorted(codes)[0], exactly="out_of_memory")
    assert len(codes) == 1
    assert all("per_device_batch_size" in job.error.message for job in jobs[:2] if job.error)
    record("R11", "attempts at most", max(job.attempt for job in jobs[:2]), at_most=2)
    begun = [attempt["claimed_at"] for attempt in house.attempts()]
    gaps = [
        min(at - attempt["ended_at"] for at in begun if at >= attempt["ended_at"])
        for attempt in house.attempts()
        if attempt["ended_at"] < max(begun)
    ]
    record("R11", "the next job starts after", max(gaps), "s", at_most=10.0)
    assert jobs[2].status is Status.SUCCEEDED
    house.check()
