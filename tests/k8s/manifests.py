"""What kustomize makes of the manifests, and the questions that tests ask of it."""

import base64
import os
import re
import subprocess
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.workers import REPO

K8S = REPO / "k8s"
KUBECTL = Path(sysconfig.get_path("scripts")) / "kubectl"
OURS = "luthier/"  # what the names of our images have in them
COMPONENTS = {"observability": K8S / "observability"}  # those that are elsewhere
WORKLOADS = ("Deployment", "StatefulSet", "Job")

Object = dict[str, Any]


class Installation(NamedTuple):
    """An overlay, with components that it does not take by itself."""

    overlay: str
    components: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "+".join((self.overlay, *self.components))


INSTALLATIONS = (
    Installation("dev"),
    Installation("gpu"),
    Installation("gpu", ("spot",)),
    Installation("gpu-jobs"),
    Installation("gpu", ("observability",)),
)


class Pod(NamedTuple):
    """A pod's template, and the workload that it is of."""

    workload: Object
    labels: dict[str, str]
    spec: Object

    @property
    def name(self) -> str:
        return str(self.workload["metadata"]["name"])

    @property
    def containers(self) -> list[Object]:
        return [*self.spec.get("initContainers", ()), *self.spec["containers"]]


def render(installation: Installation, folder: Path) -> list[Object]:
    """The objects of an installation. `folder` is for a kustomization of the test's own."""
    root = K8S / "overlays" / installation.overlay
    if installation.components:
        parts = {
            "resources": [_relative(root, folder)],
            "components": [
                _relative(COMPONENTS.get(name, K8S / "components" / name), folder)
                for name in installation.components
            ],
        }
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(parts))
        root = folder
    return [one for one in yaml.safe_load_all(kustomize(root)) if one]


def kustomize(root: Path) -> str:
    done = subprocess.run([KUBECTL, "kustomize", root], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _relative(path: Path, folder: Path) -> str:
    return os.path.relpath(path, folder)


def pods(objects: Sequence[Object]) -> Iterator[Pod]:
    """Of workloads, and those that the launcher and Kubeflow's Trainer will make."""
    for one in objects:
        if one["kind"] in WORKLOADS:
            yield _pod(one, one["spec"]["template"])
        elif one["metadata"]["name"].startswith("luthier-attempts"):
            yield _pod(one, yaml.safe_load(one["data"]["pod.yaml"]))
        elif one["kind"] == "ClusterTrainingRuntime":
            for job in one["spec"]["template"]["spec"]["replicatedJobs"]:
                yield _pod(one, job["template"]["spec"]["template"])


def _pod(one: Object, template: Object) -> Pod:
    return Pod(one, template["metadata"]["labels"], template["spec"])


def our_containers(objects: Sequence[Object]) -> Iterator[tuple[Pod, Object]]:
    for pod in pods(objects):
        for container in pod.containers:
            if OURS in container["image"]:
                yield pod, container


def of_kind(objects: Sequence[Object], kind: str) -> list[Object]:
    return [one for one in objects if one["kind"] == kind]


def by_name(objects: Sequence[Object], kind: str, name: str) -> Object:
    found = [one for one in of_kind(objects, kind) if one["metadata"]["name"] == name]
    assert len(found) == 1, f"{len(found)} objects {kind}/{name}"
    return found[0]


def selects(selector: Object, labels: dict[str, str]) -> bool:
    """Whether a label selector of Kubernetes takes a pod with these labels."""
    wanted = selector.get("matchLabels", {})
    if any(labels.get(name) != value for name, value in wanted.items()):
        return False
    for rule in selector.get("matchExpressions", ()):
        assert rule["operator"] == "In", f"not known here: {rule}"
        if labels.get(rule["key"]) not in rule["values"]:
            return False
    return True


def environment(objects: Sequence[Object], container: Object) -> dict[str, str]:
    """A container's variables. Secrets that the overlay does not make are named, not known."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        settings = by_name(objects, "ConfigMap", source["configMapRef"]["name"])
        found |= settings["data"]
    for entry in container.get("env", ()):
        found[entry["name"]] = expanded(_value(objects, container, entry), found)
    return found


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """With the values of `$(NAME)`, as the kubelet puts them in."""
    return re.sub(r"\$\((\w+)\)", lambda match: variables[match[1]], text)


def _value(objects: Sequence[Object], container: Object, entry: Object) -> str:
    if "value" in entry:
        return str(entry["value"])
    kind, reference = next(iter(entry["valueFrom"].items()))
    if kind == "secretKeyRef":
        return _secret(objects, reference)
    assert (kind, reference) == ("resourceFieldRef", {"resource": "limits.cpu"}), entry
    return str(container["resources"]["limits"]["cpu"])


def _secret(objects: Sequence[Object], reference: Object) -> str:
    for secret in of_kind(objects, "Secret"):
        if secret["metadata"]["name"] == reference["name"]:
            return base64.b64decode(secret["data"][reference["key"]]).decode()
    return f"{reference['name']}/{reference['key']}"
