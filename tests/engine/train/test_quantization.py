"""QLoRA: a base in 4 bits to learn on, and figures of the base that serves."""

import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pytest
import torch
from safetensors.torch import load_file

from engine.infer.probes import compute_logprobs
from engine.plan import Finished
from engine.spec import LoraPeft, QloraPeft, SftMethod
from engine.train import probing
from engine.train.errors import TrainingFailed
from engine.train.model import add_peft, load_base
from tests.bases import make_base
from tests.engine.infer.world import load
from tests.engine.train.runs import Reports, train
from tests.workers import REPO


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


def learn(base: Path, work_dir: Path) -> tuple[Finished, Reports]:
    method = SftMethod(max_steps=10, learning_rate=5e-3, warmup_ratio=0)
    return train(base, work_dir, method, QloraPeft(r=4))


def test_a_worker_that_cannot_quantize_says_so_before_it_begins(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(TrainingFailed, match="bitsandbytes does not load") as failed:
        load_base(base, QloraPeft())
    assert failed.value.code == "quantization_unavailable"
    assert load_base(base, LoraPeft()).dtype == torch.float32


def test_the_fork_server_leaves_bitsandbytes_and_the_gpu_to_its_children() -> None:
    pytest.importorskip("bitsandbytes")
    script = (
        "import sys, engine.train.preload, torch\n"
        "assert 'bitsandbytes' not in sys.modules and not torch.cuda.is_initialized()\n"
        "from peft.import_utils import is_bnb_4bit_available\n"
        "assert is_bnb_4bit_available()\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=REPO, check=True)


@pytest.mark.parametrize("double", [True, False])
def test_the_linear_layers_are_in_four_bits_and_the_head_is_not(base: Path, double: bool) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    model = load_base(base, QloraPeft(use_double_quant=double))
    layer = model.model.layers[0].mlp.down_proj
    assert isinstance(layer, bnb.nn.Linear4bit)
    assert layer.weight.dtype == torch.uint8
    assert (layer.weight.quant_type, layer.weight.quant_state.nested) == ("nf4", double)
    assert not isinstance(model.lm_head, bnb.nn.Linear4bit)
    trained = add_peft(model, QloraPeft(r=4))
    assert {p.dtype for p in trained.parameters() if p.requires_grad} == {torch.float32}


def test_a_forward_in_eval_mode_leaves_the_gradients_right(base: Path) -> None:
    pytest.importorskip("bitsandbytes")
    ids = torch.arange(20)[None]

    def gradients(*, evaluate_first: bool) -> dict[str, torch.Tensor]:
        model = load_base(base, QloraPeft())
        torch.manual_seed(0)
        tuned = add_peft(model, QloraPeft(r=4)).train()
        if evaluate_first:
            with torch.no_grad():
                tuned.eval()(input_ids=ids)
            tuned.train()
        tuned(input_ids=ids, labels=ids).loss.backward()
        return {name: p.grad for name, p in tuned.named_parameters() if p.grad is not None}

    fresh, evaluated = gradients(evaluate_first=False), gradients(evaluate_first=True)
    assert fresh.keys() == evaluated.keys()
    assert all(torch.equal(fresh[name], evaluated[name]) for name in fresh)
    assert max(float(gradient.abs().max()) for gradient in fresh.values()) > 0


def test_the_manifest_tells_of_the_base_that_serves_and_how_far_training_was(
    base: Path, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    finished, _ = learn(base, tmp_path / "run")
    assert finished.kind == "lora"
    weights = load_file(finished.path / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}

    plain, four_bits = load(base), load_base(base, QloraPeft())
    for probe in finished.probes:
        expected = compute_logprobs(plain, probe.token_ids, probe.prompt_tokens)
        assert probe.base_logprobs == pytest.approx(expected, abs=1e-5)
        quantized = compute_logprobs(four_bits, probe.token_ids, probe.prompt_tokens)
        assert probe.base_logprobs != pytest.approx(quantized, abs=1e-3)

    from peft import PeftModel

    trained = PeftModel.from_pretrained(four_bits, finished.path).eval()
    differences = [
        abs(ours - served)
        for probe in finished.probes
        for ours, served in zip(
            compute_logprobs(trained, probe.token_ids, probe.prompt_tokens),
            probe.logprobs,
            strict=True,
        )
    ]
    assert finished.metrics["quantization_logprob_gap"] == pytest.approx(
        fmean(differences), rel=1e-3
    )
    assert finished.metrics["quantization_logprob_gap"] > 0


def test_an_adapter_goes_on_with_the_weights_it_has(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    start, _ = learn(base, tmp_path / "start")
    still = SftMethod(max_steps=1, learning_rate=1e-12)
    on, _ = train(base, tmp_path / "on", still, QloraPeft(r=4), init_from=start.path)
    before, after = (load_file(f.path / "adapter_model.safetensors") for f in (start, on))
    assert before.keys() == after.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-7)


def test_a_large_difference_between_the_bases_is_told(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(probing, "LARGE_GAP", 0.0)
    _, reports = learn(base, tmp_path / "run")
    assert ["nats a token from those it had in training" in text for text in reports.warnings] == [
        True
    ]


def test_plain_lora_has_no_such_figure(base: Path, tmp_path: Path) -> None:
    method = SftMethod(max_steps=2, learning_rate=5e-3)
    finished, _ = train(base, tmp_path / "run", method, LoraPeft(r=4))
    assert "quantization_logprob_gap" not in finished.metrics
