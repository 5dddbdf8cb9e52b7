"""How virtual tokens begin, and what is said where they could hardly learn."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from engine.spec import Peft, PrefixTuningPeft, PromptTuningPeft, SftMethod
from engine.train.errors import TrainingFailed
from engine.train.model import add_peft, export, load_base, trainable_parameters
from tests.bases import make_base
from tests.engine.train.runs import train


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


def start_of(base: Path, peft: Peft) -> torch.Tensor:
    """The virtual tokens before any step, as they are exported."""
    torch.manual_seed(0)
    model = add_peft(load_base(base), peft)
    embeddings: torch.Tensor = model.prompt_encoder["default"].embedding.weight.detach()
    return embeddings


def from_text(text: str, count: int) -> PromptTuningPeft:
    return PromptTuningPeft(
        num_virtual_tokens=count, prompt_tuning_init="text", prompt_tuning_init_text=text
    )


@pytest.mark.parametrize("count", [2, 5, 17])
def test_a_text_is_cut_or_repeated_to_the_number_of_tokens(base: Path, count: int) -> None:
    ids = Tokenizer.from_file(str(base / "tokenizer.json")).encode("say it again").ids
    assert 2 < len(ids) < 17
    wanted = torch.tensor((ids * count)[:count])
    words = load_base(base).get_input_embeddings().weight.detach()
    assert torch.equal(start_of(base, from_text("say it again", count)), words[wanted])


def test_random_tokens_are_embeddings_of_the_vocabulary(base: Path) -> None:
    words = load_base(base).get_input_embeddings().weight.detach()
    start = start_of(base, PromptTuningPeft(num_virtual_tokens=6))
    assert all((words == row).all(dim=1).any() for row in start)
    noise = start_of(base, PromptTuningPeft(num_virtual_tokens=6, prompt_tuning_init="random"))
    assert float(torch.cdist(noise, words).min()) > 1


def test_a_text_without_tokens_is_refused(base: Path, tmp_path: Path) -> None:
    silent = make_base(tmp_path)
    tokenizer = json.loads((silent / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"Regex": "."}, "content": ""}
    (silent / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(TrainingFailed, match="has no tokens") as failed:
        add_peft(load_base(silent), from_text("say", 4))
    assert failed.value.code == "peft_invalid"


@pytest.mark.parametrize(
    ("peft", "parameters"),
    [
        (PromptTuningPeft(num_virtual_tokens=3), 3 * 64),
        (from_text("say", 3), 3 * 64),
        (PrefixTuningPeft(num_virtual_tokens=3), 3 * 2 * 2 * 32),  # layers, keys and values, width
        (
            PrefixTuningPeft(num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=5),
            3 * 32 + 33 * 5 + 6 * 2 * 2 * 32,
        ),
    ],
)
def test_nothing_else_is_trained_and_the_result_names_no_place_of_this_machine(
    base: Path, tmp_path: Path, peft: Peft, parameters: int
) -> None:
    model = add_peft(load_base(base), peft)
    assert trainable_parameters(model) == parameters
    export(model, "tiny", base, tmp_path / "out")
    config = (tmp_path / "out" / "adapter_config.json").read_text()
    assert json.loads(config)["base_model_name_or_path"] == "tiny"
    assert str(base.parent) not in config


@pytest.mark.parametrize("peft", [PromptTuningPeft(), PrefixTuningPeft()])
def test_a_learning_rate_for_lora_is_called_too_low(base: Path, tmp_path: Path, peft: Peft) -> None:
    _, low = train(base, tmp_path / "low", SftMethod(max_steps=1), peft)
    assert [message for message in low.warnings if "`method.learning_rate`" in message]
    _, high = train(base, tmp_path / "high", SftMethod(max_steps=1, learning_rate=0.05), peft)
    assert high.warnings == []


@pytest.mark.parametrize(
    ("peft", "on"),
    [
        (PromptTuningPeft(num_virtual_tokens=3), PromptTuningPeft(num_virtual_tokens=3)),
        (PrefixTuningPeft(num_virtual_tokens=3), PrefixTuningPeft(num_virtual_tokens=3)),
        (
            PrefixTuningPeft(num_virtual_tokens=3, prefix_projection=True),
            PrefixTuningPeft(num_virtual_tokens=3),
        ),
    ],
    ids=["prompt", "prefix", "projected"],
)
def test_training_goes_on_with_the_virtual_tokens_of_an_adapter(
    base: Path, tmp_path: Path, peft: Peft, on: Peft
) -> None:
    method = SftMethod(  # every row in every step
        max_steps=12, learning_rate=1e-2, warmup_ratio=0, per_device_batch_size=16
    )
    start, first = train(base, tmp_path / "start", method, peft)
    config = json.loads((start.path / "adapter_config.json").read_text())
    assert not config.get("prefix_projection")
    still = method.model_copy(update={"max_steps": 1, "learning_rate": 1e-12})
    same, _ = train(base, tmp_path / "same", still, on, init_from=start.path)
    before, after = (load_file(f.path / "adapter_model.safetensors") for f in (start, same))
    assert torch.allclose(before["prompt_embeddings"], after["prompt_embeddings"], atol=1e-6)
    for ours, theirs in zip(start.probes, same.probes, strict=True):
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
    _, more = train(base, tmp_path / "more", method, on, init_from=start.path)
    assert more.metrics[12]["loss"] < more.metrics[1]["loss"] < first.metrics[1]["loss"]
