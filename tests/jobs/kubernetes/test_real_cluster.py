"""The same objects before a real API server, where KUBECONFIG leads to one; else skipped."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from engine.spec import Resources
from jobs.kubernetes.cluster import JOBS, PODS, TRAIN_JOBS, Cluster, ClusterRefused
from jobs.kubernetes.manifest import Manifests
from jobs.kubernetes.template import read_template
from tests.jobs.kubernetes.cluster import TEMPLATE, MakeHouse
from tests.record import Record
from tests.servers import free_port
from tests.workers import conversations

KUBECONFIG = os.environ.get("KUBECONFIG", "")  # noqa: TID251  # the test's own switch


@pytest.fixture
def cluster(record: Record) -> Iterator[Cluster]:
    """A real cluster's namespace `default`, through `kubectl proxy`, which knows how to log in."""
    if not KUBECONFIG:
        record.not_run("R25", "no real cluster: KUBECONFIG is not set")
        pytest.skip("KUBECONFIG is not set")
    port = free_port()
    proxy = subprocess.Popen(["kubectl", "proxy", f"--port={port}", "--address=127.0.0.1"])
    url = f"http://127.0.0.1:{port}"
    try:
        _require_answer(url)
        made = Cluster(url, "default")
        yield made
        made.close()
    finally:
        proxy.terminate()
        proxy.wait()


def _require_answer(url: str) -> None:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            if httpx.get(f"{url}/version", trust_env=False).is_success:
                return
        except httpx.HTTPError:
            time.sleep(0.2)
    pytest.skip("the cluster of KUBECONFIG does not answer")


@pytest.mark.parametrize("nodes", [1, 2])
def test_an_attempt_is_accepted_in_a_dry_run(
    cluster: Cluster, make_house: MakeHouse, tmp_path: Path, nodes: int
) -> None:
    path = tmp_path / "pod.yaml"
    path.write_text(TEMPLATE)
    house = make_house(launcher="kubernetes", kubernetes_pod_template=path)
    dataset_id = house.add_dataset(conversations(3))
    job = house.job(house.submit(dataset_id, resources=Resources(gpus=2, nodes=nodes)))
    manifest = Manifests(house.settings, read_template(path)).attempt(job, 1)
    if manifest.kind is TRAIN_JOBS:
        try:
            list(cluster.list(TRAIN_JOBS, "luthier/queue=default"))
        except ClusterRefused:
            pytest.skip("the cluster has no Kubeflow Trainer")
    assert cluster.create(manifest.kind, manifest.object, dry_run=True)


def test_lists_and_deletes_are_understood(cluster: Cluster) -> None:
    for kind in (JOBS, PODS):
        assert list(cluster.list(kind, "luthier/job=none")) == []
    cluster.delete(JOBS, "job-that-is-not-there-1")
