"""What is served: a Llama of 135M parameters with random weights, and LoRA adapters of it."""

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from benchmarks.llama import VOCABULARY, llama_135m

ADAPTERS, RANK = 32, 8
CONTEXT = 2048


@dataclass(frozen=True)
class World:
    """A base on disk and its adapters; more are registered than there are files."""

    root: Path

    @property
    def base(self) -> Path:
        return self.root / "base"

    def adapter(self, number: int) -> Path:
        """The folder of an adapter; those above ADAPTERS have the files of others."""
        return self.root / f"ad_{number % ADAPTERS}"

    def fetch(self, name: str) -> Path:
        """As the inference server asks for one: `ad_N`, any N."""
        return self.adapter(int(name.removeprefix("ad_")))

    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.base / "tokenizer.json"))


def make(root: Path) -> World:
    """Write it all; the same numbers every time."""
    world = World(root)
    ends = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    llama_135m(max_position_embeddings=CONTEXT, **ends).save_pretrained(world.base)
    _write_tokenizer(world.base)
    for number in range(ADAPTERS):
        torch.manual_seed(number)
        base = AutoModelForCausalLM.from_pretrained(world.base)
        lora = LoraConfig(
            task_type="CAUSAL_LM",
            r=RANK,
            lora_alpha=2 * RANK,
            target_modules="all-linear",
            init_lora_weights=False,
        )
        get_peft_model(base, lora).save_pretrained(world.adapter(number))
        manifest = {"kind": "lora", "contract": {"stop_token_ids": []}, "probes": []}
        (world.adapter(number) / "manifest.json").write_text(json.dumps(manifest))
    return world


def prompts(count: int, tokens: int, seed: int = 0) -> list[list[int]]:
    random = Random(seed)
    return [[random.randrange(2, VOCABULARY) for _ in range(tokens)] for _ in range(count)]


def _write_tokenizer(folder: Path) -> None:
    """Bytes and what to end with: prompts here are token ids, and what is said is not read."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|pad|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["a b c"], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>"
    )
    fast.save_pretrained(folder)
