"""Every object against the schemas of Kubernetes, and of the operators some of them are for."""

import copy
import json
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest

from tests.k8s.manifests import Object, by_name

# The three newest, which kubernetes-validate knows.
VERSIONS = ("1.35", "1.36", "1.37")
CUSTOM = {
    (found["version"], kind): {"type": "object", "properties": {"spec": spec}, "required": ["spec"]}
    for path in Path(__file__).with_name("schemas").glob("*.json")
    for found in [json.loads(path.read_text())]
    for kind, spec in found["kinds"].items()
}


def validate(one: Object, version: str) -> None:
    schema = CUSTOM.get((one["apiVersion"], one["kind"]))
    if schema is None:
        kubernetes_validate.validate(one, version, strict=True)
    else:
        jsonschema.Draft202012Validator(schema).validate(one)


def test_the_versions_are_the_newest() -> None:
    newest = kubernetes_validate.latest_version().rpartition(".")[0]
    assert newest == VERSIONS[-1]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid(objects: list[Object], version: str) -> None:
    for one in objects:
        validate(one, version)


def test_names_are_unique(objects: list[Object]) -> None:
    names = [(one["apiVersion"], one["kind"], one["metadata"]["name"]) for one in objects]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("kind", "name", "path"),
    [
        ("Deployment", "luthier-api", "spec.template.spec.enableServiceLink"),
        ("HorizontalPodAutoscaler", "luthier-api", "spec.maxReplica"),
        ("ScaledObject", "luthier-worker-l4", "spec.minReplicas"),
        ("ScaledObject", "luthier-worker-l4", "spec.fallback.behaviour"),
        ("TriggerAuthentication", "luthier-scaler-l4", "spec.secretRef"),
    ],
)
def test_a_misspelt_field_is_found(gpu: list[Object], kind: str, name: str, path: str) -> None:
    broken = copy.deepcopy(by_name(gpu, kind, name))
    *parents, field = path.split(".")
    place = broken
    for parent in parents:
        place = place[parent]
    place[field] = 1
    with pytest.raises((kubernetes_validate.ValidationError, jsonschema.ValidationError)):
        validate(broken, VERSIONS[-1])
