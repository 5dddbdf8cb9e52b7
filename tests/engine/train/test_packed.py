"""Packed rows are learned from as the same examples alone: loss, gradient, and whole runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from engine.packing import pack
from engine.spec import FullPeft, LoraPeft, Peft, SftMethod
from engine.train.errors import TrainingFailed
from engine.train.examples import IGNORED
from engine.train.model import load_base
from engine.train.packed import RowCollator, require_separate, tokens_of
from tests.bases import make_base
from tests.engine.train.runs import bytes_of, rows_for, train
from tests.workers import REPO

TINY = REPO / "examples" / "models" / "luthier-tiny"
VOCABULARY, PAD, ROOM = 61, 0, 40
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,  # far from uniform, so that leaks would show
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.3}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
# A window narrower than the examples, and one that spans the examples before.
WINDOWS = {"sliding_window": 6}
APART: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", SIZES),
    "mistral": ("mistral", SIZES | WINDOWS),
    "qwen2": ("qwen2", SIZES),
    "qwen3": ("qwen3", SIZES),
    "gemma": ("gemma", SIZES),
    "gemma2": ("gemma2", SIZES | WINDOWS),
    "gemma3": ("gemma3_text", SIZES | WINDOWS),
    "phi3": ("phi3", SIZES | {"pad_token_id": 0}),
    "olmo2": ("olmo2", SIZES),
    "gpt2": ("gpt2", GPT2 | NO_DROPOUT),
    "gpt_neox": ("gpt_neox", SIZES),
}
TOGETHER: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}),
    "mamba": ("mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
}


def tiny(kind: str, sizes: dict[str, Any]) -> PreTrainedModel:
    torch.manual_seed(1)
    config = AutoConfig.for_model(kind, vocab_size=VOCABULARY, **sizes)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).float().train()
    return model


def some_rows(vocabulary: int = VOCABULARY) -> list[dict[str, Any]]:
    """Nine examples of 5 to 21 tokens, of each the latter half trained."""
    draw = torch.Generator().manual_seed(2)
    rows = []
    for length in (5, 21, 9, 13, 7, 17, 11, 6, 8):
        ids = torch.randint(3, vocabulary, (length,), generator=draw).tolist()
        half = length // 2
        rows.append({"input_ids": ids, "labels": [IGNORED] * half + ids[half:]})
    return rows


def together(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    packed = [[rows[i] for i in row] for row in pack([len(r["labels"]) for r in rows], ROOM)]
    return [
        {name: [x for row in part for x in row[name]] for name in ("input_ids", "labels")}
        | {"seq_lengths": [len(row["labels"]) for row in part]}
        for part in packed
    ]


def learned(model: Any, rows: list[dict[str, Any]]) -> tuple[float, Tensor]:
    """The mean loss of the trained tokens, and every gradient in one line."""
    batch = RowCollator(PAD)(rows)
    labels = batch.pop("labels")[:, 1:]
    model.zero_grad()
    logits = model(**batch, use_cache=False).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    loss.backward()
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return loss.item(), torch.cat(grads)


@pytest.mark.parametrize("name", [*APART, "luthier-tiny"])
def test_loss_and_gradient_of_packed_rows_are_those_of_the_examples_alone(name: str) -> None:
    model = load_base(TINY).train() if name == "luthier-tiny" else tiny(*APART[name])
    require_separate(model)
    rows = some_rows(model.config.vocab_size)
    assert len(together(rows)) < len(rows) / 2
    loss, gradient = learned(model, rows)
    packed_loss, packed_gradient = learned(model, together(rows))
    assert packed_loss == pytest.approx(loss, abs=1e-5)
    assert (packed_gradient - gradient).norm() <= 1e-5 * gradient.norm()


@pytest.mark.parametrize("name", TOGETHER)
def test_a_model_that_reads_on_from_example_to_example_is_refused(name: str) -> None:
    model = tiny(*TOGETHER[name])
    with pytest.raises(TrainingFailed, match=r"`method\.packing`") as failed:
        require_separate(model)
    assert failed.value.code == "packing_unsupported"
    assert model.training


def test_a_model_that_leaves_position_ids_aside_is_refused() -> None:
    model = tiny(*APART["gpt2"])
    embed = model.transformer.wpe.forward
    model.transformer.wpe.forward = lambda ids: embed(torch.arange(ids.shape[-1])[None])
    with pytest.raises(TrainingFailed, match="does not keep the examples of a packed row apart"):
        require_separate(model)


def test_no_example_begins_with_a_trained_token() -> None:
    """Not even where it is marked so: the token before it is another example's."""
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8], "seq_lengths": [2, 2]}]
    rows += [{"input_ids": [9, 4, 3], "labels": [9, 4, 3], "seq_lengths": [3]}]
    batch = RowCollator(PAD)(rows)
    assert batch["labels"].tolist() == [[-100, 6, -100, 8], [-100, 4, 3, -100]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1], [0, 1, 2, 0]]
    assert "attention_mask" not in batch
    assert tokens_of(batch["position_ids"]) == 7


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("peft", [LoraPeft(r=4), FullPeft()], ids=lambda peft: peft.type)
def test_a_step_on_packed_rows_is_the_step_on_the_examples(
    base: Path, tmp_path: Path, peft: Peft
) -> None:
    """One step over all rows: what the trainer reports of it, and of the next one, is the same."""
    size: dict[str, Any] = {"per_device_batch_size": 16, "max_length": 100, "learning_rate": 1e-3}
    found = {}
    for packing in (False, True):
        method = SftMethod(max_steps=4, packing=packing, **size)
        _, reports = train(base, tmp_path / f"{packing}", method, peft)
        names = ("loss", "grad_norm", "entropy", "num_tokens")
        found[packing] = [[reports.metrics[s][n] for n in names] for s in (1, 2)]
        assert reports.started is not None
        assert reports.started.rows == 11
    assert found[True] == [pytest.approx(step, rel=1e-4) for step in found[False]]


def test_packing_makes_fewer_steps_and_the_same_run_twice(base: Path, tmp_path: Path) -> None:
    method = SftMethod(num_train_epochs=2, packing=True, per_device_batch_size=1, max_length=64)
    whole, reports = train(base, tmp_path / "one", method, LoraPeft(r=4))
    again, _ = train(base, tmp_path / "two", method, LoraPeft(r=4))
    assert bytes_of(whole) == bytes_of(again)
    assert max(reports.metrics) < 2 * len(rows_for("sft", 11))
    assert reports.started is not None
    assert reports.started.total_steps == max(reports.metrics)
