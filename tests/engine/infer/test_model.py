"""Loading models, the definition of a log-prob, and what importing costs."""

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from engine.infer.errors import ModelUnusable
from engine.infer.model import default_stop_token_ids, load_model
from engine.infer.probes import compute_logprobs
from engine.infer.server import create_app
from tests.engine.infer.world import CONTEXT, SENTENCES, World, load

CPU = torch.device("cpu")


def change(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **fields}))


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> Path:
    return shutil.copytree(base, tmp_path / "copy")


def test_a_model_is_served_in_float32_on_a_cpu_up_to_its_context(base: Path) -> None:
    model = load_model("tiny", base, CPU)
    assert model.dtype == torch.float32
    assert model.context_length == CONTEXT
    assert load_model("tiny", base, CPU, max_context=99).context_length == 99
    assert model.vocabulary == 512


def test_stop_tokens_come_from_the_generation_config_before_the_config(copy: Path) -> None:
    assert default_stop_token_ids(copy) == {1}
    (copy / "generation_config.json").write_text('{"eos_token_id": [3, 4]}')
    assert default_stop_token_ids(copy) == {3, 4}
    (copy / "generation_config.json").unlink()
    change(copy / "config.json", eos_token_id=None)
    assert default_stop_token_ids(copy) == set()


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"auto_map": {"AutoConfig": "evil.Config"}}, "model_needs_code"),
        ({"attn_implementation": "some-one/kernel"}, "model_needs_code"),
        ({"model_type": "no-such-architecture"}, "model_unusable"),
    ],
)
def test_a_model_that_cannot_be_trusted_or_known_is_refused(
    fields: dict[str, object], code: str, copy: Path
) -> None:
    change(copy / "config.json", **fields)
    with pytest.raises(ModelUnusable) as refused:
        load_model("tiny", copy, CPU)
    assert refused.value.code == code


def test_pickled_weights_are_never_read(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelUnusable):
        load_model("tiny", copy, CPU)


def test_a_base_that_is_an_adapter_or_has_no_tokenizer_does_not_start(copy: Path) -> None:
    (copy / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelUnusable, match="merge the adapter"):
        load_model("tiny", copy, CPU)
    (copy / "adapter_config.json").unlink()
    (copy / "tokenizer.json").unlink()
    app = create_app(base_name="tiny", base_path=copy, fetch=Path, threads=1, device="cpu")

    async def start() -> None:
        async with app.router.lifespan_context(app):
            pass

    with pytest.raises(ModelUnusable, match="tokenizer"):
        asyncio.run(start())


def test_logprobs_are_of_the_tokens_after_the_prompt(base: Path, world: World) -> None:
    model, ids = load(base), world.ids(SENTENCES[0])
    every = compute_logprobs(model, ids, 1)
    assert len(every) == len(ids) - 1
    assert compute_logprobs(model, ids, 5) == every[4:]
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits.log_softmax(-1)[0]
    assert every[2] == pytest.approx(float(expected[2, ids[3]]), abs=1e-6)


def test_any_callable_with_logits_can_be_scored() -> None:
    def uniform(input_ids: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 8, dtype=torch.bfloat16))

    assert compute_logprobs(uniform, [1, 2, 3], 1) == pytest.approx([-2.0794415] * 2)


@pytest.mark.parametrize("prompt_tokens", [0, 3, 4])
def test_there_must_be_something_to_score(prompt_tokens: int) -> None:
    with pytest.raises(ValueError, match="nothing to score"):
        compute_logprobs(lambda **_: None, [1, 2, 3], prompt_tokens)


def test_scoring_a_model_in_training_ignores_dropout_and_keeps_it_in_training(
    own_world: World,
) -> None:
    own_world.add_lora("ad_x", lora_dropout=0.5)
    model, ids = load(own_world.base, own_world.root / "ad_x"), own_world.ids(SENTENCES[0])
    expected = compute_logprobs(model, ids, 3)
    model.requires_grad_(True).train()
    assert compute_logprobs(model, ids, 3) == expected
    assert model.training
    model(torch.tensor([ids])).logits.sum().backward()  # and it can go on to train


def test_the_errors_that_fetch_raises_are_imported_without_torch() -> None:
    code = "import sys, engine.infer.errors; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
