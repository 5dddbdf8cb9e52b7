"""An object store where nearly half of the requests fail, stall or are cut, under real workers."""

from pathlib import Path

import pytest

from adapters import registry
from adapters.errors import AdapterCorrupt
from jobs.checkpoints import CheckpointCorrupt, fetch_checkpoint
from jobs.model import Status
from storage.keys import adapter_file, checkpoint_file
from storage.objects import ObjectStore
from tests.chaos.conftest import Make
from tests.chaos.house import ChaosHouse, lost
from tests.chaos.trainer import Script
from tests.record import Record
from tests.servers import S3Server
from tests.storage.faulty_proxy import Weather, faulty_proxy

JOBS = 8


def test_jobs_end_as_they_should_over_storage_that_fails(
    make_house: Make, s3: S3Server, record: Record
) -> None:
    """Workers reach S3 through the storm; what they leave is looked at without it."""
    weather = Weather(3)
    with faulty_proxy(s3.endpoint_url, weather, stall_s=0.8) as storm:
        house = make_house(
            storage_url=f"s3://{s3.bucket}",
            s3_endpoint_url=s3.endpoint_url,
            s3_access_key=s3.access_key,
            s3_secret_key=s3.secret_key,
            max_attempts=10,
            lease_s=60.0,
            heartbeat_s=1.0,
        )
        far = {"s3_endpoint_url": storm.url, "s3_timeout_s": 0.6}
        ids = [house.post(Script(steps=12)) for _ in range(JOBS)]
        with house.at_work(2, **far):
            jobs = house.wait_all(ids)
        asked = len(storm.seen)
    record("R7", "jobs lost in the storm", lost(jobs), exactly=0)
    record("R7", "requests that failed, of all", weather.faults / asked, at_least=0.25)
    again = sum(job.attempt - 1 for job in jobs)
    record("R7", "attempts beyond the first, of 8 jobs", again, at_most=JOBS)
    house.check()


def flip(objects: ObjectStore, key: str, at: int) -> bytes:
    """Change one byte of a stored object; what it was."""
    whole = objects.get(key)
    damaged = bytearray(whole)
    damaged[at % len(whole)] ^= 0x10
    objects.put(key, bytes(damaged))
    return whole


@pytest.fixture
def finished(make_house: Make) -> tuple[ChaosHouse, str]:
    """A job that is done, with its adapter and a checkpoint in the store."""
    house = make_house()
    job_id = house.post(Script(steps=12))
    with house.at_work():
        assert house.wait(job_id).status is Status.SUCCEEDED
    return house, job_id


def test_a_byte_that_flipped_in_any_stored_file_is_found_and_the_file_named(
    finished: tuple[ChaosHouse, str], tmp_path: Path, record: Record
) -> None:
    house, job_id = finished
    tenant, objects = house.tenant_id, house.objects
    adapter_id = house.job(job_id).adapter_id
    assert adapter_id is not None
    manifest = registry.read_manifest(objects, tenant, adapter_id)
    checkpoint = house.store.jobs.checkpoints(tenant, job_id)[0]
    flipped, named = 0, 0

    for name in ["manifest.json", *(entry.name for entry in manifest.files)]:
        key = adapter_file(tenant, adapter_id, name)
        for at in spots(objects.head(key).size_bytes):
            whole = flip(objects, key, at)
            with pytest.raises(AdapterCorrupt) as refused:
                registry.fetch(objects, tenant, adapter_id, tmp_path / f"a{flipped}")
            flipped, named = flipped + 1, named + (name in str(refused.value))
            objects.put(key, whole)
    for file in checkpoint.files:
        key = checkpoint_file(tenant, job_id, checkpoint.attempt, checkpoint.step, file.name)
        for at in spots(file.size_bytes):
            whole = flip(objects, key, at)
            with pytest.raises(CheckpointCorrupt) as damaged:
                fetch_checkpoint(objects, tenant, checkpoint, tmp_path / f"c{flipped}")
            flipped, named = flipped + 1, named + (file.name in str(damaged.value))
            objects.put(key, whole)

    record("R9", "flipped bytes found, and the file named", named / flipped, exactly=1.0)
    assert flipped > 60
    house.check()


def spots(size_bytes: int) -> range:
    """Some fifteen places from the first byte to the last."""
    return range(0, size_bytes, max(1, size_bytes // 14))
