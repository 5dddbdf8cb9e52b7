"""One vLLM and two services for all tests of this room, which run when they are asked for."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import servers
from tests.servers import S3Server
from tests.vllm.server import MODEL, PLUGIN, PYTHON, storage_settings, vllm
from tests.vllm.service import Two, rows, two

BASE_MODELS = json.dumps({"luthier-tiny": str(MODEL)})
HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    asked = "vllm" in str(config.option.markexpr)
    for item in items:
        if HERE not in item.path.parents:
            continue
        item.add_marker(pytest.mark.vllm)
        item.add_marker(pytest.mark.timeout(900))
        if not asked:
            item.add_marker(pytest.mark.skip(reason="takes minutes; run `make test-vllm`"))
        elif not PYTHON.exists():
            item.add_marker(pytest.mark.skip(reason="there is no vLLM; run `make env-vllm`"))


@pytest.fixture(scope="session")
def bucket(s3_server: S3Server) -> Iterator[S3Server]:
    with servers.fresh_bucket(s3_server) as made:
        yield made


@pytest.fixture(scope="session")
def services(bucket: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    """vLLM holds two adapters at once in memory, so that it reads folders again all the time."""
    port = servers.free_port()
    environment = PLUGIN | storage_settings(bucket)
    arguments = ("--max-loras", "2", "--max-cpu-loras", "2")
    with (
        vllm(port, BASE_MODELS, environment, *arguments) as url,
        two(tmp_path_factory.mktemp("vllm") / "data", bucket, url) as running,
    ):
        yield running


@pytest.fixture(scope="session")
def adapters(services: Two) -> dict[str, str]:
    """Three LoRA adapters that differ, trained by the service: ids by name."""
    halves = services.upload(rows(0, 60)), services.upload(rows(60, 60))
    return {
        "small": services.train(halves[0], {"type": "lora", "r": 4}),
        "rslora": services.train(halves[0], {"type": "lora", "r": 16, "use_rslora": True}),
        "some": services.train(
            halves[1], {"type": "lora", "r": 8, "target_modules": ["q_proj", "v_proj", "up_proj"]}
        ),
    }
