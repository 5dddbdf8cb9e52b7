"""`luthier serve` as operators meet it: it starts, mends itself, and leaves nothing behind."""

import signal
import socket
import stat
from pathlib import Path

import httpx
import pytest

from tests.cli.conftest import SERVE, Luthier, Serving, wait_for


def test_it_brings_up_every_role_and_sigterm_ends_them_all(
    luthier: Luthier, serving: Serving
) -> None:
    ready = httpx.get(f"{serving.url}/readyz", timeout=60).json()
    listed = luthier.run("job", "list")
    said = serving.stop()

    assert (ready["status"], ready["inference"]) == ("ready", "ok")
    assert "No jobs yet" in listed
    assert not serving.gone(30)
    for line in ("api ", "inference ", "worker ", "Key ", "Ctrl-C stops it all", "Stopped"):
        assert line in said
    assert serving.url in said
    assert max(map(len, said.splitlines())) <= 80 + len(str(luthier.data_dir))
    assert "\x1b" not in said


def test_a_first_start_makes_secrets_that_only_their_owner_reads(shared: Luthier) -> None:
    for name in ("key", "pepper"):
        assert stat.S_IMODE((shared.data_dir / name).stat().st_mode) == 0o600


def test_a_second_serve_on_the_same_folder_is_refused_in_one_line(
    shared_serving: tuple[Luthier, Serving],
) -> None:
    luthier, serving = shared_serving
    said = luthier.run(*SERVE, code=1)

    assert f"(process {serving.process.pid}) works in {luthier.data_dir}" in said
    assert "Traceback" not in said
    assert httpx.get(f"{serving.url}/healthz", timeout=60).status_code == 200


@pytest.mark.parametrize("role", ["api", "worker"])
def test_a_role_that_is_killed_comes_back(
    role: str, shared_serving: tuple[Luthier, Serving]
) -> None:
    _, serving = shared_serving
    first = serving.child(role)
    assert first is not None
    first.kill()

    wait_for(lambda: not first.is_running(), 60)
    wait_for(lambda: serving.child(role) is not None, 90)
    # The socket was never closed: a request waits for the new process instead of failing.
    assert httpx.get(f"{serving.url}/healthz", timeout=60).status_code == 200


def test_killed_with_sigkill_its_children_end_and_the_folder_is_free_again(
    luthier: Luthier, serving: Serving
) -> None:
    serving.process.send_signal(signal.SIGKILL)
    again = luthier.serve()  # waits for the heirs of the first one

    assert not serving.gone(30)
    again.stop()
    assert not again.gone(30)
    again.clear()


def test_a_taken_port_is_one_clear_line(luthier: Luthier) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = luthier.run("serve", "--port", port, "--inference-port", "0", code=1)

    failure = said.splitlines()[-1]
    assert f"Cannot listen on 127.0.0.1:{port}: address already in use" in failure
    assert "choose another with --port" in failure
    assert "Traceback" not in said


def test_a_role_that_cannot_start_says_why_and_nothing_stays(
    luthier: Luthier, tmp_path: Path
) -> None:
    missing = f'{{"tiny": "{tmp_path}/nowhere"}}'
    said = luthier.run(*SERVE, code=1, base_models=missing)

    assert "inference ended with exit code 1 while starting" in said
    assert "Base model 'tiny': its folder is missing" in said
    assert "Traceback" not in said


def test_a_setting_that_makes_no_sense_is_named(luthier: Luthier) -> None:
    said = luthier.run("serve", code=1, port="many")

    assert "The configuration is not valid." in said
    assert "LUTHIER_PORT: " in said


def test_where_vllm_generates_no_inference_server_is_started(luthier: Luthier) -> None:
    serving = luthier.serve(generator="vllm", vllm_url="http://127.0.0.1:9")
    try:
        ready = httpx.get(f"{serving.url}/readyz", timeout=60).json()
        assert (ready["status"], ready["inference"]) == ("degraded", "unreachable")
        assert serving.child("inference") is None
        assert serving.child("worker") is not None
        said = serving.stop()
    finally:
        serving.clear()
    assert "inference " not in said
    assert not serving.gone(30)
