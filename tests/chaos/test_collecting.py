"""What killed processes leave behind is collected, and nothing else is."""

import time

import pytest

from jobs.collecting import DAY_S, Collected, Collecting
from jobs.model import Status
from jobs.tables import jobs
from storage.keys import adapter_file, adapter_pointer, checkpoint_file, dataset_source, upload_part
from tests import clock
from tests.chaos.conftest import Make
from tests.chaos.house import ChaosHouse, wait_until
from tests.chaos.trainer import Script
from tests.record import Record

HEX = "5" * 24


def collecting(house: ChaosHouse, *, orphan_s: float = 0.0, days: float = 30) -> Collecting:
    return Collecting(
        house.store, house.objects, every_s=60, orphan_s=orphan_s, checkpoint_days=days
    )


def keys(house: ChaosHouse) -> set[str]:
    return {info.key for prefix in ("tenants/", "index/") for info in house.objects.list(prefix)}


@pytest.fixture(params=["make_house", "production"])
def house(request: pytest.FixtureRequest) -> ChaosHouse:
    make: Make = request.getfixturevalue(request.param)
    return make()


def leave_orphans(house: ChaosHouse, job_id: str) -> set[str]:
    """What uploads, a publish and a checkpoint leave that are cut before their row."""
    ours = house.tenant_id
    left = {
        dataset_source(ours, f"ds_{HEX}"),
        adapter_file(ours, f"ad_{HEX}", "adapter_model.safetensors"),
        adapter_file(ours, f"ad_{HEX}", "manifest.json"),
        adapter_pointer(f"ad_{HEX}"),
        upload_part(ours, f"up_{HEX}", f"pt_{HEX}"),
        checkpoint_file(ours, job_id, 7, 3, "state.json"),
        checkpoint_file(ours, f"job_{HEX}", 1, 3, "state.json"),
    }
    for key in left:
        house.objects.put(key, b"left behind")
    return left


def test_files_without_a_row_are_removed_and_all_others_stay(
    house: ChaosHouse, record: Record
) -> None:
    ids = [house.post(Script(steps=12)) for _ in range(3)]
    with house.at_work():
        house.wait_all(ids)
    before = keys(house)
    left = leave_orphans(house, ids[0])
    time.sleep(1.1)  # a bucket tells ages in whole seconds

    found = collecting(house).collect()

    assert found.orphans == 6
    record("R18", "orphans left after collecting", len(keys(house) & left), exactly=0)
    record("R18", "files lost to collecting", len(before - keys(house)), exactly=0)
    assert collecting(house).collect() == Collected(0, 0, 0)
    house.check()


def test_what_is_young_may_be_on_its_way_and_stays(make_house: Make) -> None:
    house = make_house()
    left = leave_orphans(house, house.post())
    collecting(house, orphan_s=60).collect()
    assert left <= keys(house)


def test_a_file_that_no_room_makes_is_nobodys_to_remove(make_house: Make) -> None:
    house = make_house()
    house.objects.put("tenants/notes/readme", b"an operator's own")
    collecting(house).collect()
    assert "tenants/notes/readme" in keys(house)


def test_checkpoints_of_jobs_long_over_are_let_go_of(make_house: Make) -> None:
    house = make_house()
    ids = [house.post(Script(steps=12)) for _ in range(2)]
    with house.at_work():
        house.wait_all(ids)
    first = jobs.update().where(jobs.c.id == ids[0])
    with house.store.database.write() as connection:
        connection.execute(first.values(finished_at=time.time() - 31 * DAY_S))
    time.sleep(0.05)

    found = collecting(house).collect()

    assert found.checkpoints == 2
    assert house.store.jobs.checkpoints(house.tenant_id, ids[0]) == []
    assert len(house.store.jobs.checkpoints(house.tenant_id, ids[1])) == 2
    assert not any(f"/jobs/{ids[0]}/" in key for key in keys(house))
    house.check()


def test_a_worker_collects_what_a_killed_one_left(make_house: Make, record: Record) -> None:
    """Killed with its manifest written, and cancelled before another could clear that away."""
    house = make_house(collect_s=0.3, orphan_s=0.5)
    job_id = house.post()
    with house.nursery.worker(house.settings, crash_at="manifest_written") as doomed:
        doomed.wait(120)
    house.store.jobs.cancel(house.tenant_id, job_id)
    orphans = {key for key in keys(house) if "adapters/" in key}
    assert orphans
    began = clock.now()
    with house.at_work():
        house.wait(job_id)
        wait_until(lambda: not orphans & keys(house))
        took = clock.now() - began
    assert house.job(job_id).status is Status.CANCELLED
    what = "an orphan, taken for one after 0.5 s, is gone from a worker's start after"
    record("R18", what, took, "s", at_most=10)
    house.check()


def test_a_job_at_work_keeps_what_it_is_writing(make_house: Make) -> None:
    """Orphans here are older than a moment, and still nothing of a running job is taken."""
    house = make_house(collect_s=0.05, orphan_s=2.0)
    ids = [house.post(Script(steps=10, step_s=0.02)) for _ in range(5)]
    with house.at_work(2):
        found = house.wait_all(ids)
    assert [job.status for job in found] == [Status.SUCCEEDED] * 5
    house.check()
