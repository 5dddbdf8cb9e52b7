"""The overlay in which attempts are Jobs: what the launcher makes of its pod template, and what the
dispatcher may do.
"""

from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from engine.spec import LoraPeft, Resources, SftMethod
from jobs.kubernetes.cluster import JOBS, TRAIN_JOBS
from jobs.kubernetes.manifest import QUEUE, Manifests
from jobs.kubernetes.template import read_template
from jobs.model import Job, JobSpec
from jobs.settings import Settings
from tests.k8s.manifests import (
    Installation,
    Object,
    by_name,
    environment,
    of_kind,
    our_containers,
    pods,
    render,
    selects,
)
from tests.k8s.test_schemas import VERSIONS


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    return render(Installation("gpu-jobs"), tmp_path_factory.mktemp("kustomize"))


@pytest.fixture
def manifests(launched: list[Object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manifests:
    """The dispatcher's of class l4, with the settings and the template of its pod."""
    (template,) = [one for one in of_kind(launched, "ConfigMap") if "pod.yaml" in one["data"]]
    (tmp_path / "pod.yaml").write_text(template["data"]["pod.yaml"])
    for name, value in dispatchers(launched)["l4"].items():
        monkeypatch.setenv(name, value)
    return Manifests(Settings(), read_template(tmp_path / "pod.yaml"))


def dispatchers(launched: list[Object]) -> dict[str, dict[str, str]]:
    """The variables of each dispatcher by its class."""
    found = [
        environment(launched, one) for _, one in our_containers(launched) if one["name"] == "worker"
    ]
    return {variables["LUTHIER_QUEUE"]: variables for variables in found}


def job(**resources: int) -> Job:
    spec = JobSpec(
        base_model="my-base",
        dataset="ds_1",
        method=SftMethod(),
        peft=LoraPeft(),
        resources=Resources(**resources),
    )
    return Job.model_construct(id="job_0123456789abcdef", spec=spec, attempt=0)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_attempts_job_is_valid_and_restricted(manifests: Manifests, version: str) -> None:
    made = manifests.attempt(job(gpus=1), 1)
    assert made.kind == JOBS
    kubernetes_validate.validate(made.object, version, strict=True)
    spec = made.object["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert container["resources"]["limits"] == {
        "cpu": "8",
        "memory": "32Gi",
        "ephemeral-storage": "50Gi",
        "nvidia.com/gpu": "1",
    }
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["automountServiceAccountToken"] is False
    assert spec["terminationGracePeriodSeconds"] == 120


def test_an_attempt_waits_in_the_local_queue_of_its_class(
    launched: list[Object], manifests: Manifests
) -> None:
    made = manifests.attempt(job(gpus=1), 1).object
    queue = made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    assert made["spec"]["suspend"] is True
    assert queue == made["metadata"]["labels"][QUEUE] == "l4"
    for name in dispatchers(launched):
        local = by_name(launched, "LocalQueue", name)
        cluster = by_name(launched, "ClusterQueue", local["spec"]["clusterQueue"])
        (group,) = cluster["spec"]["resourceGroups"]
        (flavor,) = group["flavors"]
        by_name(launched, "ResourceFlavor", flavor["name"])
        (container,) = made["spec"]["template"]["spec"]["containers"]
        asked = container["resources"]["requests"].keys() | container["resources"]["limits"].keys()
        assert asked == set(group["coveredResources"]), "Kueue admits nothing else"


def test_a_job_on_several_machines_finds_its_runtime(
    launched: list[Object], manifests: Manifests
) -> None:
    made = manifests.attempt(job(gpus=8, nodes=2), 1)
    assert made.kind == TRAIN_JOBS
    assert manifests.settings.max_nodes > 1
    runtime = by_name(launched, "ClusterTrainingRuntime", made.object["spec"]["runtimeRef"]["name"])
    (node,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    assert node["name"] == "node"
    (container,) = node["template"]["spec"]["template"]["spec"]["containers"]
    assert container["name"] == "node", "Kubeflow's Trainer looks for it by this name"


def test_an_attempts_pod_gets_what_policies_let_through(
    launched: list[Object], manifests: Manifests
) -> None:
    labels = manifests.attempt(job(gpus=1), 1).object["spec"]["template"]["metadata"]["labels"]
    for name in ("attempts", "to-database", "to-storage"):
        policy = by_name(launched, "NetworkPolicy", name)
        assert selects(policy["spec"]["podSelector"], labels), name
    database = by_name(launched, "NetworkPolicy", "to-broker")
    assert not selects(database["spec"]["podSelector"], labels), "an attempt needs no broker"


def test_attempts_run_by_themselves_and_dispatchers_hand_them_over(
    launched: list[Object], monkeypatch: pytest.MonkeyPatch
) -> None:
    for pod, container in our_containers(launched):
        variables = environment(launched, container)
        expected = "kubernetes" if container["name"] == "worker" else "local"
        assert variables.get("LUTHIER_LAUNCHER", "local") == expected, pod.name


def test_the_dispatcher_may_do_what_it_does_and_nothing_else(launched: list[Object]) -> None:
    """`Cluster` creates, lists and deletes Jobs and TrainJobs, and lists pods."""
    rules = {
        (rule["apiGroups"][0], rule["resources"][0]): set(rule["verbs"])
        for role in of_kind(launched, "Role")
        for rule in role["rules"]
    }
    assert rules == {
        ("batch", "jobs"): {"create", "list", "delete"},
        ("", "pods"): {"list"},
        ("trainer.kubeflow.org", "trainjobs"): {"create", "list", "delete"},
    }
    (account,) = {
        (subject["kind"], subject["name"])
        for binding in of_kind(launched, "RoleBinding")
        for subject in binding["subjects"]
    }
    assert account == ("ServiceAccount", "luthier-dispatcher")
    for pod in pods(launched):
        holds = pod.spec.get("serviceAccountName") == account[1]
        assert holds is (pod.labels.get("app.kubernetes.io/component") == "worker"), pod.name


def test_dispatchers_need_no_gpu_and_no_scaling(launched: list[Object]) -> None:
    for pod, container in our_containers(launched):
        if container["name"] == "worker":
            assert "nvidia.com/gpu" not in container["resources"]["limits"]
            assert "nodeSelector" not in pod.spec
            assert pod.workload["spec"]["replicas"] == 1
            assert container["image"].rpartition(":")[0].endswith("luthier/api")
            mounts = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
            volumes = {one["name"]: one for one in pod.spec["volumes"]}
            folder, _, file = environment(launched, container)[
                "LUTHIER_KUBERNETES_POD_TEMPLATE"
            ].rpartition("/")
            source = volumes[mounts[folder]]["configMap"]["name"]
            assert yaml.safe_load(by_name(launched, "ConfigMap", source)["data"][file])
    assert of_kind(launched, "ScaledObject") == []
