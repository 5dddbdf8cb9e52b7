"""A vLLM that could not keep what the plugin promises does not start, and says why."""

import json

import pytest

from tests import servers
from tests.vllm.conftest import BASE_MODELS
from tests.vllm.server import MODEL, PLUGIN, NotStarted, vllm


def failure(environment: dict[str, str], base_models: str = BASE_MODELS) -> str:
    with (
        pytest.raises(NotStarted) as ended,
        vllm(servers.free_port(), base_models, environment, "--max-loras", "2"),
    ):
        pass
    return str(ended.value)


def test_without_the_switch_that_lets_it_ask() -> None:
    said = failure({"VLLM_PLUGINS": "luthier"})
    assert "asks Luthier for adapters only with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1" in said


def test_under_a_name_that_is_on_no_list() -> None:
    said = failure(PLUGIN, json.dumps({"other": str(MODEL)}))
    assert "serves its model as luthier-tiny, which is none of LUTHIER_BASE_MODELS (other)" in said


def test_with_another_model_than_the_list_says(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    from tests.bases import make_base

    other = make_base(tmp_path_factory.mktemp("other"))
    said = failure(PLUGIN, json.dumps({"luthier-tiny": str(other)}))
    assert "which is not what LUTHIER_BASE_MODELS calls 'luthier-tiny'" in said
