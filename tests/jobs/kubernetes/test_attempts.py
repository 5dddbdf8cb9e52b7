"""Attempts in pods: the real runner trains and publishes in a process of its own."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adapters import registry
from adapters.cache import AdapterCache
from cli.roles import fetcher
from engine.spec import FullPeft, Resources
from jobs.exit_codes import Exit
from jobs.kubernetes.manifest import name_of
from jobs.model import Job, Status
from jobs.settings import as_environment
from storage.keys import dataset_source
from tests import clock
from tests.engine.infer.world import serve
from tests.jobs.kubernetes.api_server import LUTHIER, wait_for
from tests.jobs.kubernetes.cluster import MakeHouse, Yard, yard
from tests.record import Record
from tests.servers import free_port
from tests.workers import REPO, House, conversations


@pytest.fixture
def here(make_house: MakeHouse, tmp_path: Path) -> Iterator[Yard]:
    with yard(make_house, tmp_path, train_device="cpu", drain_s=20.0) as made:
        yield made


def losses(house: House, job_id: str) -> list[float]:
    return [event.data["loss"] for event in house.store.jobs.metrics(house.tenant_id, job_id)]


def require_published(house: House, job: Job) -> None:
    assert job.status is Status.SUCCEEDED, job.error
    assert job.adapter_id is not None
    registry.read_manifest(house.objects, house.tenant_id, job.adapter_id)


def test_a_pod_on_two_gpus_trains_a_whole_model_while_its_worker_is_replaced(
    here: Yard, tiny_base: Path, tmp_path: Path
) -> None:
    job_id = here.submit(
        num_train_epochs=6,
        per_device_batch_size=2,
        resources=Resources(gpus=2),
        peft=FullPeft(),
    )
    with here.house.worker() as first:
        here.house.wait(job_id, lambda job: job.status is Status.RUNNING)
        first.kill()
        first.wait()
    with here.house.worker():
        job = here.house.wait(job_id)
        wait_for(lambda: here.api.condition(name_of(job_id, 1)) == "Complete")
    require_published(here.house, job)
    assert (job.attempt, here.api.created) == (1, [name_of(job_id, 1)])
    assert here.exit_codes(job_id, 1) == [Exit.DONE]
    assert len(losses(here.house, job_id)) == 60, "steps of two rows on each of two"

    cache = AdapterCache(here.house.objects, tmp_path / "served", 1 << 30)
    world: Any = SimpleNamespace(base=tiny_base, fetch=fetcher(cache))
    with serve(world) as client:  # which computes the manifest's probes before it answers
        asked = {"model": job.adapter_id, "prompt": "say", "max_tokens": 2, "temperature": 0}
        answer = client.post("/v1/completions", json=asked)
    assert answer.status_code == 200, answer.text


def test_a_drained_pod_is_not_charged_and_a_second_one_does_nothing(
    here: Yard, record: Record
) -> None:
    job_id = here.submit(num_train_epochs=500, checkpoint_every=10_000)
    name = name_of(job_id, 1)
    with here.house.worker():
        here.house.wait(job_id, lambda job: job.progress.step >= 3)
        second = here.api.run_again(name)
        wait_for(lambda: second.exit_code is not None)
        record("R25", "exit code of a second pod", second.exit_code, exactly=Exit.SUPERSEDED)
        step = here.house.job(job_id).progress.step
        here.house.wait(job_id, lambda job: job.progress.step > step + 5)
        assert here.api.condition(name) == "", "the first one goes on"

        before = here.house.job(job_id).progress.step
        asked = clock.now()
        here.api.disrupt(name)
        here.house.wait(job_id, lambda job: job.attempt == 2)
        took_s = clock.now() - asked
        record("R12", "drained pod to the next attempt's claim", took_s, "s", at_most=60)
        wait_for(lambda: here.exit_codes(job_id, 1) in ([], [Exit.RETRYABLE, Exit.SUPERSEDED]))
        checkpoint = here.house.store.jobs.checkpoints(here.house.tenant_id, job_id)[0]
        assert checkpoint.step >= before, "it was made when the pod was told to leave"
        here.house.wait(job_id, lambda job: job.progress.step > checkpoint.step)
        here.house.store.jobs.cancel(here.house.tenant_id, job_id)
        job = here.house.wait(job_id)
        wait_for(lambda: here.exit_codes(job_id, 2) in ([], [Exit.STOPPED]))
        charged = sum("lost" in text for text in here.messages(job_id))
        record("R25", "attempts charged to a job whose pod was drained", charged, exactly=0)
    assert (job.status, job.adapter_id) == (Status.CANCELLED, None)


def test_a_job_that_fails_by_what_it_is_says_so_with_its_exit_code(
    here: Yard, record: Record
) -> None:
    dataset_id = here.house.add_dataset(conversations(5))
    here.house.objects.put(dataset_source(here.house.tenant_id, dataset_id), b"rotten")
    job_id = here.house.submit(dataset_id)
    here.dispatcher().turn()
    job = here.house.wait(job_id)
    assert job.error is not None
    assert job.error.code == "dataset_corrupt"
    wait_for(lambda: here.exit_codes(job_id, 1) == [Exit.FAILED])
    condition = here.api.condition(name_of(job_id, 1))
    record("R25", "Job of a job that failed", condition, exactly="Failed PodFailurePolicy")
    here.dispatcher().turn()
    assert here.api.created == [name_of(job_id, 1)]


def test_two_machines_share_an_attempt(make_house: MakeHouse) -> None:
    house = make_house()
    rows = house.add_dataset(conversations(40))
    job_id = house.submit(rows, num_train_epochs=2, resources=Resources(nodes=2))
    meeting = {"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(free_port())}
    meeting["GLOO_SOCKET_IFNAME"] = "lo"
    machines = [
        subprocess.Popen(
            [*LUTHIER, "attempt", job_id, "1"],
            cwd=REPO,
            env=as_environment(house.settings) | meeting | {"PET_NODE_RANK": str(node)},
        )
        for node in (1, 0)
    ]
    try:
        job = house.wait(job_id)
        ends = [machine.wait(120) for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
            machine.wait()
    require_published(house, job)
    assert ends == [Exit.DONE, Exit.DONE]
    assert job.progress.step == 6, "steps of eight rows on each of two"
