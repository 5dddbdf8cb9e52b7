"""Attempts on several machines: one TrainJob, which the dispatcher watches as it does a Job."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.spec import Resources
from jobs.kubernetes.manifest import name_of
from tests.jobs.kubernetes.cluster import MakeHouse, Yard, yard


@pytest.fixture
def here(make_house: MakeHouse, tmp_path: Path) -> Iterator[Yard]:
    with yard(
        make_house, tmp_path, max_nodes=2, train_device="cuda", kubernetes_local_queue="team-a"
    ) as made:
        yield made


def test_a_job_on_two_machines_is_a_train_job(here: Yard) -> None:
    job_id = here.submit(resources=Resources(gpus=8, nodes=2))
    here.dispatcher().turn()
    here.dispatcher().turn()
    assert (here.api.created, here.api.jobs) == ([name_of(job_id, 1)], {})
    made = here.api.train_jobs[name_of(job_id, 1)]
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    assert made["spec"] == {
        "suspend": True,
        "runtimeRef": {
            "apiGroup": "trainer.kubeflow.org",
            "kind": "ClusterTrainingRuntime",
            "name": "luthier",
        },
        "trainer": {
            "command": ["luthier", "attempt", job_id, "1"],
            "numNodes": 2,
            "numProcPerNode": 8,
            "resourcesPerNode": {"limits": {"nvidia.com/gpu": "8"}},
        },
    }
    told = [text for text in here.messages(job_id) if "capacity" in text]
    assert told == ["Waiting for capacity: its queue has not admitted the attempt yet."]


def test_one_that_fails_in_its_attempt_is_charged_and_one_that_is_over_is_deleted(
    here: Yard,
) -> None:
    job_id = here.submit(resources=Resources(nodes=2))
    here.dispatcher().turn()
    made = here.api.train_jobs[name_of(job_id, 1)]
    del made["spec"]["suspend"]
    here.house.store.leases.claim_attempt("its first pod", job_id, 1)
    made["status"]["conditions"] = [{"type": "Failed", "status": "True"}]
    here.dispatcher().turn()
    assert "attempt 1 lost, queued again" in here.messages(job_id)[-1]
    here.dispatcher().turn()
    assert sorted(here.api.train_jobs) == [name_of(job_id, 1), name_of(job_id, 2)]
    here.house.store.jobs.cancel(here.house.tenant_id, job_id)
    here.dispatcher().turn()
    assert list(here.api.train_jobs) == [name_of(job_id, 1)], "what has ended stays for a while"
