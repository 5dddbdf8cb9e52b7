"""What PEFT writes is accepted, and what we hand out PEFT loads unchanged, to the same logits."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from adapters import registry
from adapters.archive import unpack
from adapters.cache import AdapterCache
from adapters.download import download
from adapters.errors import AdapterInvalid
from adapters.manifest import Manifest
from adapters.tensors import base_shapes
from adapters.validation import validate_full, validate_lora
from storage.local import LocalStore

TENANT = "tn_" + "a" * 24
ADAPTER = "ad_" + "b" * 24
pytestmark = pytest.mark.filterwarnings(  # peft still asks transformers by the old name
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
TOKENS = torch.arange(12).reshape(1, 12)


def llama(hidden_size: int = 32) -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=hidden_size, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
        )
    )  # fmt: skip


def gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64,
                        bos_token_id=0, eos_token_id=0)  # fmt: skip
    return GPT2LMHeadModel(config)


def save_base(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def save_adapter(model: PreTrainedModel, folder: Path, config: LoraConfig) -> torch.Tensor:
    """Write an adapter with an effect; the logits of the model with it."""
    tuned = get_peft_model(model, config)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    tuned.save_pretrained(folder)
    return logits(tuned)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(TOKENS).logits


def loaded(base: Path, adapter: Path) -> torch.Tensor:
    return logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter))


CONFIGS = {
    "some": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
    "all": {"r": 8, "target_modules": "all-linear", "use_rslora": True},
    "dora": {"r": 4, "target_modules": "all-linear", "use_dora": True},
    "ranks": {"r": 4, "target_modules": ["q_proj", "down_proj"], "rank_pattern": {"down_proj": 2}},
    "head": {"r": 4, "target_modules": ["q_proj", "lm_head"]},
}


@pytest.mark.parametrize("kind", ["some", "all", "ranks", "dora"])
def test_a_published_adapter_loads_in_plain_peft_from_cache_and_download(
    tmp_path: Path, draft: Manifest, kind: str
) -> None:
    base = save_base(llama(), tmp_path / "base")
    config = LoraConfig(task_type="CAUSAL_LM", lora_alpha=16, **CONFIGS[kind])
    before = logits(AutoModelForCausalLM.from_pretrained(base))
    expected = save_adapter(llama(), tmp_path / "trained", config)
    summary = validate_lora(tmp_path / "trained", base_shapes(base), max_rank=8)
    assert (summary.r, summary.lora_alpha) == (config.r, 16)
    store = LocalStore(tmp_path / "store")
    registry.publish(store, TENANT, tmp_path / "trained", draft)
    cached = AdapterCache(store, tmp_path / "cache", 1 << 30).path(ADAPTER)
    (tmp_path / "a.tar").write_bytes(b"".join(download(store, TENANT, ADAPTER)))
    unpack(tmp_path / "a.tar", tmp_path / "downloaded", max_bytes=1 << 30)
    assert torch.equal(loaded(base, cached), expected)
    assert torch.equal(loaded(base, tmp_path / "downloaded"), expected)
    assert not torch.allclose(before, expected, atol=1e-2)
    assert validate_lora(tmp_path / "downloaded", base_shapes(base), max_rank=8) == summary


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize("kind", CONFIGS)
def test_the_summary_counts_what_peft_made(tmp_path: Path, kind: str) -> None:
    base = save_base(llama(), tmp_path / "base")
    tuned = get_peft_model(llama(), LoraConfig(task_type="CAUSAL_LM", **CONFIGS[kind]))
    tuned.save_pretrained(tmp_path / "trained", save_embedding_layers=False)
    summary = validate_lora(tmp_path / "trained", base_shapes(base), max_rank=8)
    parameters = [p.numel() for name, p in tuned.named_parameters() if "lora_" in name]
    of_module = 3 if summary.use_dora else 2
    assert (of_module * summary.modules, summary.parameters) == (len(parameters), sum(parameters))


def test_an_adapter_of_gpt2_whose_layers_lie_the_other_way_round(tmp_path: Path) -> None:
    base = save_base(gpt2(), tmp_path / "base")
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["c_attn"], fan_in_fan_out=True)
    save_adapter(gpt2(), tmp_path / "trained", config)
    summary = validate_lora(tmp_path / "trained", base_shapes(base), max_rank=8)
    assert summary.modules == 2


def test_an_adapter_of_a_wider_model_is_of_the_wrong_base(tmp_path: Path) -> None:
    base = save_base(llama(), tmp_path / "base")
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"])
    save_adapter(llama(hidden_size=64), tmp_path / "trained", config)
    with pytest.raises(AdapterInvalid) as caught:
        validate_lora(tmp_path / "trained", base_shapes(base), max_rank=8)
    assert caught.value.code == "wrong_base"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"init_lora_weights": "pissa"}, "changed_base_unsupported"),
        ({"modules_to_save": ["norm"]}, "modules_to_save_unsupported"),
        ({"bias": "lora_only"}, "lora_bias_unsupported"),
        ({"r": 16}, "rank_too_high"),
    ],
)
def test_what_peft_can_and_we_cannot_is_refused_by_name(
    tmp_path: Path, options: dict[str, object], code: str
) -> None:
    base = save_base(llama(), tmp_path / "base")
    config = LoraConfig(
        **{"task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj"], **options}
    )
    get_peft_model(llama(), config).save_pretrained(tmp_path / "trained")
    with pytest.raises(AdapterInvalid) as caught:
        validate_lora(tmp_path / "trained", base_shapes(base), max_rank=8)
    assert caught.value.code == code


def full_verdict(folder: Path, base: Path) -> str:
    try:
        validate_full(folder, base_shapes(base))
    except AdapterInvalid as refused:
        return refused.code
    return "accepted"


def test_a_full_model_must_be_its_bases_own_kind(tmp_path: Path) -> None:
    base = save_base(llama(), tmp_path / "base")
    tuned = save_base(llama(), tmp_path / "tuned")
    assert full_verdict(tuned, base) == "accepted"
    llama().save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert full_verdict(tmp_path / "shards", base) == "accepted"
    assert full_verdict(save_base(llama(64), tmp_path / "wide"), base) == "wrong_base"
    assert full_verdict(save_base(gpt2(), tmp_path / "gpt2"), base) == "wrong_base"


def test_a_full_model_with_code_pickles_or_bad_numbers_is_refused(tmp_path: Path) -> None:
    base = save_base(llama(), tmp_path / "base")
    model = llama()
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    assert full_verdict(save_base(model, tmp_path / "nan"), base) == "nan_weights"
    for name, code in (
        ("pytorch_model.bin", "pickle_in_archive"),
        ("modeling_x.py", "unexpected_file"),
        ("model-00001-of-00009.safetensors", "unexpected_file"),
    ):
        tuned = save_base(llama(), tmp_path / name)
        (tuned / name).write_bytes(b"x")
        assert full_verdict(tuned, base) == code
    remote = save_base(llama(), tmp_path / "remote")
    (remote / "config.json").write_text('{"auto_map": {"AutoModel": "x.X"}}')
    assert full_verdict(remote, base) == "model_needs_code"
    (remote / "config.json").unlink()
    assert full_verdict(remote, base) == "config_missing"
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "config.json").write_text("{}")
    assert full_verdict(tmp_path / "none", base) == "weights_missing"
