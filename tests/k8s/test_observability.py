"""The objects by which Prometheus Operator and Grafana find what there is to watch."""

import importlib.util

import pytest
import yaml

from tests.k8s.manifests import K8S, Installation, Object, by_name, of_kind, pods, render

HERE = K8S / "observability"


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    folder = tmp_path_factory.mktemp("kustomize")
    return render(Installation("dev", ("observability",)), folder)


def test_the_rules_are_those_of_the_rules_file(watched: list[Object]) -> None:
    rules = yaml.safe_load((HERE / "rules.yaml").read_text())
    (found,) = of_kind(watched, "PrometheusRule")
    assert found["spec"] == rules, "run `make k8s-rules`"


def test_the_object_is_what_its_maker_makes() -> None:
    spec = importlib.util.spec_from_file_location("prometheusrule", HERE / "prometheusrule.py")
    assert spec is not None
    assert spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    assert (HERE / "prometheusrule.yaml").read_text() == maker.prometheusrule()


def test_grafana_gets_the_dashboard(watched: list[Object]) -> None:
    found = by_name(watched, "ConfigMap", "luthier-dashboard")
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert found["data"]["luthier.json"] == (HERE / "dashboards/luthier.json").read_text()


def test_every_role_is_scraped_and_may_be(watched: list[Object]) -> None:
    (monitor,) = of_kind(watched, "PodMonitor")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    (policy,) = [
        one for one in of_kind(watched, "NetworkPolicy") if "metrics" in one["metadata"]["name"]
    ]
    (allowed,) = policy["spec"]["ingress"][0]["ports"]
    scraped = set()
    for pod in pods(watched):
        for port in pod.spec["containers"][0].get("ports", ()):
            if port["name"] == endpoint["port"]:
                assert port["containerPort"] == allowed["port"]
                scraped.add(pod.labels["app.kubernetes.io/component"])
    (rule,) = policy["spec"]["podSelector"]["matchExpressions"]
    assert scraped == set(rule["values"]) == {"api", "worker", "inference"}
