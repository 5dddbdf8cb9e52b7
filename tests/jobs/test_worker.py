"""Real worker processes that train a real, small model: what a client is promised about a job."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from adapters import registry
from engine.spec import LoraPeft
from jobs.model import Job, Status
from storage.keys import dataset_source
from tests import clock
from tests.jobs.conftest import Workshop
from tests.record import Record
from tests.workers import House, conversations

MakeHouse = Callable[..., House]


def at_step(step: int) -> Callable[[Job], bool]:
    return lambda job: job.progress.step >= step


def hashes(house: House, job: Job) -> dict[str, str]:
    assert job.adapter_id is not None, job.error
    manifest = registry.read_manifest(house.objects, house.tenant_id, job.adapter_id)
    return {entry.name: entry.sha256 for entry in manifest.files}


def losses(house: House, job_id: str) -> list[float]:
    return [event.data["loss"] for event in house.store.jobs.metrics(house.tenant_id, job_id)]


def children_of(process: int) -> list[psutil.Process]:
    return psutil.Process(process).children(recursive=True)


def test_a_job_is_trained_published_and_recorded_step_by_step(
    workshop: Workshop, tmp_path: Path
) -> None:
    house = workshop.house
    dataset_id = house.add_dataset(conversations(40))
    first = house.wait(
        house.submit(dataset_id, num_train_epochs=4, learning_rate=2e-3, warmup_ratio=0)
    )
    submitted_at = time.time()
    again = house.wait(
        house.submit(dataset_id, num_train_epochs=4, learning_rate=2e-3, warmup_ratio=0)
    )
    assert first.status is Status.SUCCEEDED, first.error
    assert (first.progress.step, first.progress.total_steps) == (20, 20)
    assert hashes(house, first) == hashes(house, again), "the same job gives the same bytes"
    assert first.adapter_id != again.adapter_id
    history = losses(house, first.id)
    assert len(history) == 20
    assert history[-1] < history[0] - 0.3, "it learns"
    # The worker is warm by now: what is not training must be short.
    assert again.timings.first_step_s is not None
    first_step_at = submitted_at + again.timings.first_step_s
    assert clock.ran_s(submitted_at, first_step_at) < 10, again.timings

    assert first.adapter_id is not None
    folder = tmp_path / "adapter"
    manifest = registry.fetch(house.objects, house.tenant_id, first.adapter_id, folder)
    assert manifest.lineage.datasets[0].id == dataset_id
    assert manifest.probes
    assert manifest.probes[0].logprobs != manifest.probes[0].base_logprobs


def test_a_killed_workers_job_goes_on_elsewhere_and_ends_in_the_same_bytes(
    make_house: MakeHouse, record: Record
) -> None:
    house = make_house(lease_s=2.0)
    dataset_id = house.add_dataset(conversations(64))

    def submit() -> str:
        return house.submit(
            dataset_id, num_train_epochs=5, per_device_batch_size=4, learning_rate=1e-3
        )

    with house.worker() as first:
        whole = house.wait(submit())
        job_id = submit()
        house.wait(job_id, at_step(23))
        family = [psutil.Process(first.pid), *children_of(first.pid)]
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        _, alive = psutil.wait_procs(family[1:], timeout=60)
        assert not alive, "a trainer outlived its worker"
    assert house.job(job_id).status is Status.RUNNING

    with house.worker():
        resumed = house.wait(job_id)

    assert resumed.status is Status.SUCCEEDED, resumed.error
    assert resumed.attempt > 1
    events, _ = house.store.jobs.events(house.tenant_id, job_id, limit=1000)
    resumes = [event.data["resumed_step"] for event in events if "resumed_step" in event.data]
    assert resumes[0] == 0
    assert resumes[1] >= 10, "it went on from a checkpoint, the newest that was stored by then"
    pairs = list(zip(losses(house, job_id), losses(house, whole.id), strict=True))
    differing = sum(one != other for one, other in pairs)
    record("R16", f"losses that differ of {len(pairs)}, killed and resumed", differing, exactly=0)
    same = hashes(house, resumed) == hashes(house, whole)
    record("R16", "the adapters' files are equal, byte for byte", same, exactly=True)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert not list((house.settings.data_dir / "work").glob("*/*-*")), "nothing left on the disk"


def test_a_worker_that_is_told_to_stop_hands_its_job_back_with_a_checkpoint(
    make_house: MakeHouse, record: Record
) -> None:
    house = make_house(lease_s=30.0, max_attempts=1)  # the first charge would end the job
    job_id = house.submit(house.add_dataset(conversations(64)), num_train_epochs=100)
    with house.worker() as process:
        house.wait(job_id, at_step(7))
        asked = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        record("R12", "SIGTERM to a worker's end", time.monotonic() - asked, "s", at_most=60)
    job = house.job(job_id)
    record("R12", "status of its job then", str(job.status), exactly="queued")
    checkpoint = house.store.jobs.checkpoints(house.tenant_id, job_id)[0]
    assert checkpoint.step >= 7
    with house.worker():
        house.wait(job_id, lambda job: job.attempt == 2 and job.progress.step > checkpoint.step)
        house.store.jobs.cancel(house.tenant_id, job_id)
        assert house.wait(job_id).status is Status.CANCELLED


def test_a_worker_that_is_told_to_stop_before_a_first_step_loses_nothing(
    make_house: MakeHouse, record: Record
) -> None:
    house = make_house(lease_s=30.0, max_attempts=1)
    job_id = house.submit(house.add_dataset(conversations(64)), max_steps=5)
    for attempt in (1, 2):
        with house.worker() as process:
            house.wait(job_id, lambda job, n=attempt: job.attempt == n)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        assert house.job(job_id).status in (Status.QUEUED, Status.SUCCEEDED)
    with house.worker():
        job = house.wait(job_id)
    record(
        "R12",
        "status of a job that was released early, twice",
        str(job.status),
        exactly="succeeded",
    )


def test_cancel_and_pause_take_effect_within_seconds(workshop: Workshop) -> None:
    house = workshop.house
    job_id = house.submit(house.add_dataset(conversations(64)), num_train_epochs=500)
    house.wait(job_id, at_step(3))
    asked = clock.now()
    house.store.jobs.pause(house.tenant_id, job_id)
    paused = house.wait(job_id, lambda job: job.status is Status.PAUSED)
    assert clock.now() - asked < 15
    assert house.store.jobs.checkpoints(house.tenant_id, job_id)[0].step == paused.progress.step
    house.store.jobs.resume(house.tenant_id, job_id)
    house.wait(job_id, at_step(paused.progress.step + 2))
    asked = clock.now()
    house.store.jobs.cancel(house.tenant_id, job_id)
    job = house.wait(job_id)
    assert clock.now() - asked < 15
    assert (job.status, job.adapter_id) == (Status.CANCELLED, None)
    made = house.store.adapters.page(house.tenant_id, limit=100).data
    assert job_id not in [adapter.job_id for adapter in made]


def test_a_trainer_that_dies_costs_an_attempt_and_not_the_worker(workshop: Workshop) -> None:
    house, process = workshop
    dataset_id = house.add_dataset(conversations(64))
    job_id = house.submit(dataset_id, num_train_epochs=500)
    for attempt in (1, 2):
        house.wait(job_id, lambda job, n=attempt: job.attempt == n and at_step(1)(job))
        time.sleep(0.5)
        trainers = [
            child
            for child in children_of(process.pid)
            if not child.children() and child.num_threads() > 1
        ]
        os.kill(max(trainers, key=lambda child: child.create_time()).pid, signal.SIGKILL)
    failed = house.wait(job_id)
    assert failed.status is Status.FAILED
    assert failed.error is not None
    assert failed.error.code == "out_of_memory"
    assert "per_device_batch_size" in failed.error.message
    following = house.wait(house.submit(dataset_id, max_steps=3))
    assert following.status is Status.SUCCEEDED
    assert process.poll() is None


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"peft": LoraPeft(r=4, lora_alpha=1e30)}, "diverged"),
        ({"max_length": 8}, "nothing_to_train"),
    ],
)
def test_a_job_that_cannot_learn_fails_with_its_cause(
    workshop: Workshop, wrong: dict[str, Any], code: str
) -> None:
    house = workshop.house
    rows = [
        {
            "messages": [
                {"role": "user", "content": "a question that is longer than eight tokens are"},
                {"role": "assistant", "content": "yes"},
            ]
        }
    ]
    dataset_id = house.add_dataset(rows * 60)
    job = house.wait(house.submit(dataset_id, **wrong))
    assert job.status is Status.FAILED, job
    assert job.error is not None
    assert job.error.code == code, job.error
    assert "`method." in job.error.message


def test_rows_that_are_not_what_was_uploaded_are_never_trained_on(workshop: Workshop) -> None:
    house = workshop.house
    dataset_id = house.add_dataset(conversations(60))
    key = dataset_source(house.tenant_id, dataset_id)
    data = bytearray(house.objects.get(key))
    data[100] ^= 1
    house.objects.put(key, bytes(data))
    job = house.wait(house.submit(dataset_id))
    assert job.error is not None
    assert job.error.code == "dataset_corrupt"
