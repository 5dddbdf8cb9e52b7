"""Jobs that ask for GPUs: where they go, what clients see, what is refused."""

from typing import Any

import httpx
import pytest

from api.services import Services
from tests.api.making import Woken, spec_for

pytestmark = pytest.mark.anyio


async def test_a_job_goes_to_a_class_of_workers_with_its_gpus(
    client: httpx.AsyncClient, dataset: dict[str, Any], services: Services
) -> None:
    classes = {"worker_gpus": {"a100x8": 8}}
    services.settings = services.settings.model_copy(update=classes)
    services.wakeups = woken = Woken()

    answer = await client.post("/jobs", json=spec_for(dataset, resources={"gpus": 4}))

    assert answer.status_code == 201, answer.text
    job = answer.json()
    assert job["resources"] == {"gpus": 4, "nodes": 1}
    assert woken.queues == ["a100x8"]
    assert services.store.leases.claim("a worker", "default") is None
    claim = services.store.leases.claim("a worker", "a100x8")
    assert claim is not None
    assert claim.job.id == job["id"]


@pytest.mark.parametrize(
    ("resources", "param", "code"),
    [
        ({"gpus": 2}, "resources.gpus", "too_many_gpus"),
        ({"nodes": 2}, "resources.nodes", "too_many_nodes"),
        ({"gpus": 0}, "resources.gpus", "invalid_request"),
    ],
)
async def test_gpus_that_nobody_has_are_refused(
    client: httpx.AsyncClient,
    dataset: dict[str, Any],
    resources: dict[str, int],
    param: str,
    code: str,
) -> None:
    for path in ("/jobs", "/jobs/estimate"):
        answer = await client.post(path, json=spec_for(dataset, resources=resources))
        assert answer.status_code == 422, answer.text
        error = answer.json()["error"]
        assert (error["param"], error["code"]) == (param, code)


async def test_more_gpus_make_fewer_and_larger_steps(
    client: httpx.AsyncClient, dataset: dict[str, Any], services: Services
) -> None:
    services.settings = services.settings.model_copy(update={"worker_gpus": {"default": 2}})
    method = {"type": "sft", "max_length": 64, "per_device_batch_size": 1, "num_train_epochs": 4}
    steps = []
    for resources in ({}, {"resources": {"gpus": 2}}):
        spec = spec_for(dataset) | {"method": method} | resources
        answer = await client.post("/jobs/estimate", json=spec)
        assert answer.status_code == 200, answer.text
        steps.append(answer.json()["steps"])
    assert steps[1] == steps[0] / 2 or steps[1] == (steps[0] + 4) / 2
