"""Rules that every pod of every installation keeps."""

import re
import tomllib
from typing import Any

import pytest

from tests.k8s.manifests import (
    OURS,
    Object,
    by_name,
    environment,
    of_kind,
    our_containers,
    pods,
    selects,
)
from tests.workers import REPO

VERSION = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["version"]
WHY_NO_BUDGET = "luthier.dev/no-disruption-budget"
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def test_the_namespace_enforces_the_restricted_standard(objects: list[Object]) -> None:
    labels = by_name(objects, "Namespace", "luthier")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_all_that_has_a_namespace_is_in_ours(objects: list[Object]) -> None:
    everywhere = {"Namespace", "PriorityClass", "ResourceFlavor", "ClusterQueue"}
    everywhere |= {"ClusterTrainingRuntime"}
    for one in objects:
        expected = None if one["kind"] in everywhere else "luthier"
        assert one["metadata"].get("namespace") == expected, one["metadata"]


def test_no_pod_runs_as_root_or_keeps_a_capability(objects: list[Object]) -> None:
    for pod in pods(objects):
        context = pod.spec["securityContext"]
        assert context["runAsNonRoot"] is True, pod.name
        assert context["runAsUser"] > 0, pod.name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, pod.name
        for container in pod.containers:
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False, (pod.name, container["name"])
            assert own["capabilities"] == {"drop": ["ALL"]}, (pod.name, container["name"])
            assert own["readOnlyRootFilesystem"] is True, (pod.name, container["name"])
            assert "runAsUser" not in own
            assert not own.get("privileged")


def test_no_pod_reaches_into_its_node(objects: list[Object]) -> None:
    for pod in pods(objects):
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.spec.keys(), pod.name
        kinds = {next(iter(set(volume) - {"name"})) for volume in pod.spec.get("volumes", ())}
        assert kinds <= {"emptyDir", "persistentVolumeClaim", "secret", "configMap"}, pod.name


def test_our_pods_run_as_the_user_of_the_images(objects: list[Object]) -> None:
    (user,) = set(re.findall(r"^USER (\d+):\1$", (REPO / "Dockerfile").read_text(), re.M))
    ours = {pod.name: pod for pod, _ in our_containers(objects)}
    for pod in ours.values():
        assert pod.spec["securityContext"]["runAsUser"] == int(user), pod.name
        assert pod.spec["securityContext"]["fsGroup"] == int(user), pod.name


def test_every_image_has_a_version_and_ours_has_this_one(objects: list[Object]) -> None:
    for pod in pods(objects):
        for container in pod.containers:
            name, _, tag = container["image"].rpartition(":")
            assert re.match(r"^v?\d+\.\d+", tag), (pod.name, container["image"])
            if OURS in name:
                assert tag == VERSION, container["image"]


def test_the_migration_is_of_this_version(objects: list[Object]) -> None:
    (job,) = of_kind(objects, "Job")
    assert job["metadata"]["name"] == f"luthier-migrate-{VERSION.replace('.', '-')}"
    labels = re.findall(r'image\.version="([^"]+)"', (REPO / "Dockerfile").read_text())
    assert labels == [VERSION]


def test_every_container_has_requests_and_limits(objects: list[Object]) -> None:
    for pod in pods(objects):
        for container in pod.containers:
            resources = container["resources"]
            for kind in ("requests", "limits"):
                assert {"cpu", "memory"} <= resources[kind].keys(), (pod.name, container["name"])


def test_scratch_volumes_have_a_limit_that_the_containers_limit_covers(
    objects: list[Object],
) -> None:
    for pod in pods(objects):
        disks = [
            _bytes(volume["emptyDir"]["sizeLimit"])
            for volume in pod.spec.get("volumes", ())
            if "emptyDir" in volume and volume["emptyDir"].get("medium") != "Memory"
        ]
        memory = [
            _bytes(volume["emptyDir"]["sizeLimit"])
            for volume in pod.spec.get("volumes", ())
            if volume.get("emptyDir", {}).get("medium") == "Memory"
        ]
        limits = pod.spec["containers"][0]["resources"]["limits"]
        if "ephemeral-storage" in limits:
            assert sum(disks) <= _bytes(limits["ephemeral-storage"]), pod.name
        assert sum(memory) < _bytes(limits["memory"]), pod.name


def _bytes(quantity: str) -> int:
    return int(quantity[:-2]) * UNITS[quantity[-2:]]


def test_no_pod_has_a_service_account_token_but_a_dispatcher(objects: list[Object]) -> None:
    for account in of_kind(objects, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False
    for pod in pods(objects):
        variables = environment(objects, pod.spec["containers"][0])
        dispatches = variables.get("LUTHIER_LAUNCHER") == "kubernetes"
        assert pod.spec["automountServiceAccountToken"] is dispatches, pod.name
        account = pod.spec.get("serviceAccountName")
        if account:  # one that is there
            by_name(objects, "ServiceAccount", account)
        assert account or not _is_ours(pod.spec), pod.name


def _is_ours(spec: Any) -> bool:
    return any(OURS in container["image"] for container in spec["containers"])


def test_no_pod_gets_variables_of_services(objects: list[Object]) -> None:
    # A Service `luthier-inference` would set LUTHIER_INFERENCE_PORT to a URL.
    for pod in pods(objects):
        assert pod.spec["enableServiceLinks"] is False, pod.name


def test_our_pods_have_a_priority_that_exists(objects: list[Object]) -> None:
    for pod, _ in our_containers(objects):
        by_name(objects, "PriorityClass", pod.spec["priorityClassName"])


def test_every_workload_has_a_disruption_budget_or_says_why_not(objects: list[Object]) -> None:
    budgets = [one["spec"]["selector"] for one in of_kind(objects, "PodDisruptionBudget")]
    for pod in pods(objects):
        if pod.workload["kind"] not in ("Deployment", "StatefulSet"):
            continue
        covering = [one for one in budgets if selects(one, pod.labels)]
        reason = pod.workload["metadata"].get("annotations", {}).get(WHY_NO_BUDGET)
        assert len(covering) == (0 if reason else 1), pod.name


def test_no_two_workloads_select_each_others_pods(objects: list[Object]) -> None:
    found = [pod for pod in pods(objects) if "selector" in pod.workload.get("spec", ())]
    for pod in found:
        selector = pod.workload["spec"]["selector"]
        assert [one.name for one in found if selects(selector, one.labels)] == [pod.name]


def test_all_traffic_is_denied_but_for_what_is_named(objects: list[Object]) -> None:
    deny = by_name(objects, "NetworkPolicy", "default-deny")["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for policy in of_kind(objects, "NetworkPolicy"):
        for rule in (*policy["spec"].get("ingress", ()), *policy["spec"].get("egress", ())):
            assert rule.get("ports"), policy["metadata"]["name"]
            for peer in rule.get("from", rule.get("to")):
                assert peer, policy["metadata"]["name"]


def test_what_lets_pods_in_names_ports_that_they_listen_on(objects: list[Object]) -> None:
    for policy in of_kind(objects, "NetworkPolicy"):
        for rule in policy["spec"].get("ingress", ()):
            chosen = [
                pod for pod in pods(objects) if selects(policy["spec"]["podSelector"], pod.labels)
            ]
            if policy["metadata"]["name"] == "attempts":
                continue  # they choose their ports themselves
            listening = {
                port["containerPort"]
                for pod in chosen
                for container in pod.spec["containers"]
                for port in container.get("ports", ())
            }
            assert {port["port"] for port in rule["ports"]} <= listening, policy["metadata"]


@pytest.mark.parametrize(
    ("source", "target", "port"),
    [
        ("migrate", "database", 5432),
        ("api", "database", 5432),
        ("api", "broker", 6379),
        ("api", "storage", 8333),
        ("api", "inference", 8322),
        ("worker", "database", 5432),
        ("worker", "broker", 6379),
        ("worker", "storage", 8333),
        ("worker", "inference", 8322),
        ("inference", "storage", 8333),
    ],
)
def test_who_needs_a_server_reaches_it(
    dev: list[Object], source: str, target: str, port: int
) -> None:
    assert _leaves(dev, source, target, port)
    assert _enters(dev, source, target, port)


@pytest.mark.parametrize(
    ("source", "target", "port"),
    [
        ("inference", "database", 5432),
        ("inference", "broker", 6379),
        ("migrate", "storage", 8333),
        ("migrate", "inference", 8322),
        ("worker", "api", 8321),
        ("storage", "database", 5432),
        ("database", "api", 8321),
    ],
)
def test_who_needs_it_not_does_not(dev: list[Object], source: str, target: str, port: int) -> None:
    assert not _leaves(dev, source, target, port)
    assert not _enters(dev, source, target, port)


def _leaves(objects: list[Object], source: str, target: str, port: int) -> bool:
    return _allowed(objects, "egress", "to", source, target, port)


def _enters(objects: list[Object], source: str, target: str, port: int) -> bool:
    return _allowed(objects, "ingress", "from", target, source, port)


def _allowed(
    objects: list[Object], way: str, peers: str, subject: str, other: str, port: int
) -> bool:
    mine, theirs = _labels(subject), _labels(other)
    return any(
        selects(peer["podSelector"], theirs)
        for policy in of_kind(objects, "NetworkPolicy")
        if selects(policy["spec"]["podSelector"], mine)
        for rule in policy["spec"].get(way, ())
        if port in [one["port"] for one in rule["ports"]]
        for peer in rule[peers]
        if "podSelector" in peer and "namespaceSelector" not in peer
    )


def _labels(component: str) -> dict[str, str]:
    return {"app.kubernetes.io/component": component}


def test_the_metadata_service_of_the_cloud_is_out_of_reach(gpu: list[Object]) -> None:
    blocks = [
        peer["ipBlock"]
        for policy in of_kind(gpu, "NetworkPolicy")
        for rule in policy["spec"].get("egress", ())
        for peer in rule["to"]
        if "ipBlock" in peer
    ]
    assert blocks
    for block in blocks:
        assert block["cidr"] == "10.0.0.0/8" or "169.254.0.0/16" in block["except"]


def test_production_makes_no_secrets_and_has_none_in_its_settings(gpu: list[Object]) -> None:
    assert of_kind(gpu, "Secret") == []
    secrets = {"DATABASE_URL", "BROKER_URL", "S3_ACCESS_KEY", "S3_SECRET_KEY", "PEPPER"}
    secrets |= {"VLLM_API_KEY"}
    for _, container in our_containers(gpu):
        for entry in container["env"]:
            if entry["name"].removeprefix("LUTHIER_") in secrets:
                assert set(entry) == {"name", "valueFrom"}, entry["name"]
    for settings in of_kind(gpu, "ConfigMap"):
        assert not {f"LUTHIER_{name}" for name in secrets} & settings["data"].keys()


def test_each_role_is_given_only_the_secrets_that_it_uses(gpu: list[Object]) -> None:
    given: dict[str, set[str]] = {}
    for pod, container in our_containers(gpu):
        names = given.setdefault(f"{pod.labels['app.kubernetes.io/component']}", set())
        names |= {
            entry["valueFrom"]["secretKeyRef"]["name"].removeprefix("luthier-")
            for entry in container["env"]
            if "secretKeyRef" in entry.get("valueFrom", ())
        }
    assert given == {
        "migrate": {"database"},
        "api": {"database", "broker", "storage", "pepper", "vllm"},
        "worker": {"database", "broker", "storage", "vllm"},
        "inference": {"storage", "vllm"},
    }


def test_the_api_is_spread_and_never_all_gone(objects: list[Object]) -> None:
    deployment = by_name(objects, "Deployment", "luthier-api")
    assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    spread = deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert {one["topologyKey"] for one in spread} == {
        "topology.kubernetes.io/zone",
        "kubernetes.io/hostname",
    }
    scaler = by_name(objects, "HorizontalPodAutoscaler", "luthier-api")["spec"]
    assert scaler["scaleTargetRef"]["name"] == "luthier-api"
    assert "replicas" not in deployment["spec"], "the autoscaler says how many"


def test_workers_have_time_to_hand_their_job_back(objects: list[Object]) -> None:
    workers = [
        (pod, container)
        for pod, container in our_containers(objects)
        if container.get("args") == ["worker"]
    ]
    assert workers
    for pod, container in workers:
        values = {entry["name"]: entry.get("value") for entry in container["env"]}
        drain_s = float(values["LUTHIER_DRAIN_S"] or 0)
        assert 0 < drain_s < pod.spec["terminationGracePeriodSeconds"], pod.name
        assert "lifecycle" not in container, "the whole of the grace period is for the job"


def test_servers_leave_their_service_before_they_stop(objects: list[Object]) -> None:
    for pod, container in our_containers(objects):
        if "readinessProbe" in container:
            wait_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
            probe = container["readinessProbe"]
            assert wait_s + 20 < pod.spec["terminationGracePeriodSeconds"], pod.name
            assert probe["periodSeconds"] <= 5, "R24: within 5 s"
