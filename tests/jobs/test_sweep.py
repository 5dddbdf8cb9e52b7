"""The sweep's thread: it goes on, whatever happens to one round."""

import time
from collections.abc import Callable

from jobs.sweep import Sweep
from jobs.tables import pipeline_stages
from tests.workers import House, conversations


class BrokenOnce:
    """Wake-ups that fail in a way nobody thought of, and work from then on."""

    def __init__(self) -> None:
        self.broken, self.woken = False, 0

    def wake(self, queue: str) -> None:
        self.woken += 1

    def waiting(self, queue: str) -> int:
        if not self.broken:
            self.broken = True
            raise KeyError(queue)
        return 0


def test_a_sweep_that_fails_is_not_the_last(make_house: Callable[..., House]) -> None:
    house = make_house()
    house.submit(house.add_dataset(conversations(3)))
    wakeups = BrokenOnce()
    sweep = Sweep(house.store, wakeups, "default", expire_s=1.0, wake_s=0.01)
    sweep.start()
    deadline = time.monotonic() + 60
    while not wakeups.woken and time.monotonic() < deadline:
        time.sleep(0.01)
    sweep.close()
    assert wakeups.broken
    assert wakeups.woken


def test_a_pipeline_that_is_broken_holds_up_no_other(make_house: Callable[..., House]) -> None:
    house = make_house()
    dataset_id = house.add_dataset(conversations(3))
    made = [house.submit_pipeline(dataset_id, a=None, b="@a") for _ in range(2)]
    for pipeline in made:
        house.store.jobs.cancel(house.tenant_id, pipeline.stages[0].job_id)
    broken, whole = house.store.pipelines.unmoved()
    rows = pipeline_stages.update().where(pipeline_stages.c.pipeline_id == broken)
    with house.store.database.write() as connection:
        connection.execute(rows.values(spec={"from": "another version"}))

    Sweep(house.store, BrokenOnce(), "default", expire_s=1.0, wake_s=1.0).move()

    assert house.store.pipelines.get(house.tenant_id, whole).stages[1].state == "skipped"
    assert house.store.pipelines.unmoved() == [broken]
