"""The images, as far as they can be looked into without a container: the Dockerfile, and the API
image's environment, made by the Dockerfile's own commands and run with nothing writable but /data.
"""

import json
import os
import re
import subprocess
import sysconfig
import time
from pathlib import Path

import httpx
import pytest

from tests.k8s.dockerfile import DOCKERFILE, Builder, command, effective, lineage, stages, variables
from tests.record import Record
from tests.servers import free_port
from tests.workers import REPO

TARGETS = ("api", "worker", "inference", "inference-vllm")
HADOLINT = Path(sysconfig.get_path("scripts")) / "hadolint"
LARGEST_API_MB = 450
HEAVY = {"torch", "transformers", "peft", "trl", "accelerate", "datasets", "bitsandbytes", "numba"}
# pip needs the way to its packages; nothing may lead to those of this environment.
_ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()  # noqa: TID251  # see above
    if not name.startswith(("LUTHIER_", "PYTHON"))
}


def test_the_dockerfile_has_nothing_to_complain_about() -> None:
    said = subprocess.run(
        [HADOLINT, "--no-color", "--failure-threshold=style", DOCKERFILE],
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stdout + said.stderr


def test_base_images_have_a_version() -> None:
    for stage in stages().values():
        if stage.base not in stages():
            name, _, tag = stage.base.partition("@")[0].rpartition(":")
            assert name, stage.base
            assert re.match(r"v?\d+\.\d+\.\d+", tag), stage.base
            assert "latest" not in stage.base


def test_the_python_image_is_pinned_by_its_digest() -> None:
    assert re.search(r"@sha256:[0-9a-f]{64}$", lineage("api")[0].base)


def _locked(role: str) -> dict[str, str]:
    """The version of each package of a lock; every file that pip may take has its hash there."""
    text = (REPO / f"k8s/locks/{role}.txt").read_text().replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        pinned, *hashes = line.split()
        name, _, version = pinned.partition("==")
        assert hashes, name
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", one) for one in hashes), name
        found[re.sub(r"\[.*\]", "", name)] = version
    return found


def test_images_are_locked_to_the_versions_that_are_tested(record: Record) -> None:
    constrained = dict(
        line.split("==") for line in (REPO / "constraints.txt").read_text().split() if "==" in line
    )
    worker, bare = _locked("worker"), _locked("worker-without-torch")
    assert _locked("api").items() <= bare.items() <= worker.items()
    ours = {name: version for name, version in worker.items() if name in constrained}
    assert ours == {name: constrained[name] for name in ours}
    of_torch = worker.keys() - bare.keys()
    assert {"torch", "triton"} < of_torch
    assert all(name.startswith(("torch", "triton", "nvidia", "cuda")) for name in of_torch)
    unlocked = [
        line
        for name in ("build-api", "build-torch")
        for word, line in stages()[name].instructions
        if word == "RUN"
        for line in line.split("&&")
        if "--require-hashes" not in line and "--no-deps" not in line
    ]
    assert all("--index-url" in line for line in unlocked), unlocked
    record("S15", "packages of the images, each with its hashes", len(worker), at_least=100)


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_one_command_as_a_user_without_rights(target: str) -> None:
    assert effective(target, "USER") == "10001:10001"
    assert effective(target, "STOPSIGNAL") == "SIGTERM"
    assert effective(target, "VOLUME") == variables(target)["LUTHIER_DATA_DIR"]
    assert command(target, "ENTRYPOINT") in (["luthier"], ["vllm", "serve"])


@pytest.mark.parametrize("target", ["api", "worker", "inference"])
def test_an_image_is_of_its_role_and_has_no_pip(target: str) -> None:
    assert command(target, "CMD") == [target]
    assert "pip uninstall" in lineage(target)[0].last("RUN")
    copied = [rest for word, rest in _all(target) if word == "COPY" and "--from=" in rest]
    assert len(copied) == 1, "of the stages that build, only the environment"
    assert copied[0].endswith(" /opt/luthier /opt/luthier")


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("api", "8321/healthz"),
        ("worker", "8323/metrics"),
        ("inference", "8322/health"),
        ("inference-vllm", "8000/health"),
    ],
)
def test_a_server_has_a_health_check(target: str, path: str) -> None:
    options, _, check = effective(target, "HEALTHCHECK").partition(" CMD ")
    assert "--timeout=" in options
    assert f"http://127.0.0.1:{path}" in json.loads(check)[2]


def _all(target: str) -> list[tuple[str, str]]:
    return [one for stage in lineage(target) for one in stage.instructions]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    """The stage `build-api`, carried out here."""
    builder = Builder(tmp_path_factory.mktemp("image"), _ENVIRONMENT)
    builder.build("build-api")
    return builder


def test_the_api_image_has_no_torch_and_is_small(built: Builder, record: Record) -> None:
    packages = next((built.root / "opt/luthier/lib").glob("python*/site-packages"))
    there = {path.name for path in packages.iterdir()}
    record("S15", "packages of torch's kind in the API image", len(HEAVY & there), exactly=0)
    assert {"api", "jobs", "engine", "adapters", "storage", "cli", "fastapi"} <= there
    assert not {"pip", "setuptools", "hatchling", "pytest"} & there
    size_bytes = sum(path.stat().st_size for path in packages.rglob("*") if path.is_file())
    record(
        "S15",
        "the API image's environment",
        round(size_bytes / 1e6),
        "MB",
        at_most=LARGEST_API_MB,
    )


def test_the_api_starts_from_it_and_writes_to_its_volumes_alone(
    built: Builder, tmp_path: Path, record: Record
) -> None:
    port, data, tmp = free_port(), tmp_path / "data", tmp_path / "tmp"
    data.mkdir()
    tmp.mkdir()
    before = _snapshot(built.root)
    given = {name: built.place(value) for name, value in variables("api").items()}
    base = Path(__file__).parents[2] / "examples/models/luthier-tiny"
    environment = {
        **_ENVIRONMENT,
        **given,
        "PATH": f"{built.root}/opt/luthier/bin:/usr/bin:/bin",
        "HOME": str(data),
        "TMPDIR": str(tmp),
        "LUTHIER_DATA_DIR": str(data),
        "LUTHIER_HOST": "127.0.0.1",
        "LUTHIER_PORT": str(port),
        "LUTHIER_METRICS_HOST": "127.0.0.1",
        "LUTHIER_METRICS_PORT": "0",
        "LUTHIER_BASE_MODELS": json.dumps({"luthier-tiny": str(base)}),
    }
    process = subprocess.Popen(
        [*command("api", "ENTRYPOINT"), *command("api", "CMD")],
        cwd=built.root / "opt",
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        ready = _answer(process, f"http://127.0.0.1:{port}/readyz")
        check = json.loads(effective("api", "HEALTHCHECK").partition(" CMD ")[2])
        check[2] = check[2].replace("8321", str(port))
        healthy = subprocess.run(check, env=environment, timeout=90).returncode
    finally:
        process.terminate()
        said, _ = process.communicate(timeout=90)
    assert ready["database"] == "ok", said
    assert healthy == 0
    assert process.returncode == 0, said
    written = dict(_snapshot(built.root).items() ^ before.items())
    record("S15", "files the API writes beside its volumes", len(written), exactly=0)


def _answer(process: subprocess.Popen[str], url: str) -> dict[str, str]:
    deadline = time.monotonic() + 150
    with httpx.Client(trust_env=False, timeout=60) as client:
        while process.poll() is None and time.monotonic() < deadline:
            try:
                answer: dict[str, str] = client.get(url).json()
                return answer
            except httpx.TransportError:
                time.sleep(0.1)
    raise AssertionError(process.communicate()[0] if process.poll() is not None else "no answer")


def _snapshot(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_size) for path in root.rglob("*")}
