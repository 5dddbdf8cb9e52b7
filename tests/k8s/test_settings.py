"""The manifests against the code: settings, commands, ports, probes and names."""

from typing import Any

import pytest
import typer.main

from api.health import router as health
from cli.main import app as cli
from engine.infer.routes import router as inference
from jobs.settings import Settings
from tests.k8s.manifests import (
    Object,
    by_name,
    environment,
    of_kind,
    our_containers,
    pods,
    selects,
)

FIELDS = {f"LUTHIER_{name.upper()}" for name in Settings.model_fields}
OTHERS = {  # read by libraries
    "HF_HUB_OFFLINE",
    "FORWARDED_ALLOW_IPS",
    "VLLM_PLUGINS",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING",
    "VLLM_API_KEY",
}


def test_every_variable_is_a_setting(objects: list[Object]) -> None:
    for pod, container in our_containers(objects):
        unknown = environment(objects, container).keys() - FIELDS - OTHERS
        assert not unknown, (pod.name, unknown)


def test_every_containers_settings_are_valid(
    objects: list[Object], monkeypatch: pytest.MonkeyPatch
) -> None:
    for pod, container in our_containers(objects):
        with monkeypatch.context() as patched:
            for name, value in environment(objects, container).items():
                patched.setenv(name, value)
            settings = Settings()
        assert settings.host == settings.metrics_host == "0.0.0.0", pod.name
        assert settings.storage_url.startswith("s3://"), pod.name
        if pod.labels.get("app.kubernetes.io/component") != "inference":
            assert settings.database_url, pod.name
        if pod.labels.get("app.kubernetes.io/component") not in ("migrate", "inference"):
            assert settings.inference == "http://luthier-inference:8322", pod.name


def test_no_role_takes_the_whole_node_for_its_threads(objects: list[Object]) -> None:
    for pod, container in our_containers(objects):
        if container["name"] in ("worker", "trainer", "node", "inference"):
            role = "INFERENCE" if container["name"] == "inference" else "TRAIN"
            threads = environment(objects, container)[f"LUTHIER_{role}_THREADS"]
            assert 0 < int(threads) == int(container["resources"]["limits"]["cpu"]), pod.name


def test_workers_take_from_the_queue_that_they_are_labelled_with(gpu: list[Object]) -> None:
    queues = set()
    for pod, container in our_containers(gpu):
        if container["args"] == ["worker"]:
            queue = environment(gpu, container)["LUTHIER_QUEUE"]
            assert pod.labels["luthier.dev/queue"] == queue
            queues.add(queue)
    (api,) = [one for _, one in our_containers(gpu) if one["args"] == ["api"]]
    assert environment(gpu, api)["LUTHIER_QUEUE"] in queues, "jobs go where workers are"


def test_every_command_is_one_of_ours(objects: list[Object]) -> None:
    group: Any = typer.main.get_command(cli)
    for pod, container in our_containers(objects):
        if container["name"] in ("trainer", "node"):
            continue  # theirs is made for each attempt
        assert "command" not in container, "the image's entrypoint is the command"
        if "vllm" in container["image"]:
            continue
        with group.make_context("luthier", list(container["args"])) as context:
            name, command, rest = group.resolve_command(context, list(container["args"]))
            command.make_context(name, rest, parent=context).close()
        assert name in ("api", "worker", "inference", "migrate"), pod.name


def test_vllm_serves_a_base_of_the_list_as_the_api_expects(gpu: list[Object]) -> None:
    deployment = by_name(gpu, "Deployment", "luthier-inference")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    values = environment(gpu, container)
    model, *flags = container["args"]
    given = dict(flag.removeprefix("--").split("=") for flag in flags if "=" in flag)
    assert values["LUTHIER_BASE_MODELS"] == f'{{"{given["served-model-name"]}": "{model}"}}'
    assert given["max-lora-rank"] == values["LUTHIER_VLLM_MAX_LORA_RANK"]
    assert values["LUTHIER_VLLM_URL"].endswith(f"luthier-inference:{given['port']}")
    assert "--enable-lora" in flags
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert any(model.startswith(mount + "/") for mount in mounts)


def test_every_role_sees_the_same_base_models(gpu: list[Object]) -> None:
    for pod, container in our_containers(gpu):
        if container["args"][0] != "migrate":
            mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
            assert mounts["/models"]["readOnly"] is True, pod.name


def test_every_probe_is_answered_by_a_route(objects: list[Object]) -> None:
    routes = {
        "api": {getattr(route, "path", "") for route in health.routes},
        "inference": {getattr(route, "path", "") for route in inference.routes},
        "worker": {"/metrics"},
    }
    probed = 0
    for pod, container in our_containers(objects):
        component = pod.labels.get("app.kubernetes.io/component")
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            if kind not in container:
                continue
            probe = container[kind]["httpGet"]
            assert probe["path"] in routes[component], (pod.name, kind)
            assert probe["port"] in {port["name"] for port in container["ports"]}
            probed += 1
    found = our_containers(objects)
    workers = len({pod.name for pod, one in found if one.get("args") == ["worker"]})
    assert probed == 6 + 2 * workers


def test_every_port_is_the_one_that_is_listened_on(objects: list[Object]) -> None:
    settings = {
        ("api", "http"): "LUTHIER_PORT",
        ("api", "metrics"): "LUTHIER_METRICS_PORT",
        ("worker", "metrics"): "LUTHIER_METRICS_PORT",
        ("inference", "http"): "LUTHIER_INFERENCE_PORT",
        ("inference", "metrics"): "LUTHIER_METRICS_PORT",
    }
    for pod, container in our_containers(objects):
        for port in container.get("ports", ()):
            listening = environment(objects, container)[settings[container["name"], port["name"]]]
            assert port["containerPort"] == int(listening), pod.name


def test_every_service_leads_to_a_port_of_its_pods(objects: list[Object]) -> None:
    for service in of_kind(objects, "Service"):
        selector = {"matchLabels": service["spec"]["selector"]}
        chosen = [pod for pod in pods(objects) if selects(selector, pod.labels)]
        assert len(chosen) == 1, service["metadata"]["name"]
        names = {
            port["name"]
            for container in chosen[0].spec["containers"]
            for port in container.get("ports", ())
        }
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names


def test_every_config_map_and_secret_of_dev_is_made(dev: list[Object]) -> None:
    for _, container in our_containers(dev):
        for name, value in environment(dev, container).items():
            assert not value.startswith("luthier-") or "/" not in value, (name, value)
    for pod in pods(dev):
        for volume in pod.spec.get("volumes", ()):
            if "secret" in volume:
                by_name(dev, "Secret", volume["secret"]["secretName"])
