"""Model folders for the tests of rendering: tiny tokenizers of the common kinds, any template."""

import json
from pathlib import Path
from typing import Any, Literal

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

TEMPLATES = Path(__file__).parent / "templates"
SPECIAL = [
    "<s>",
    "</s>",
    "<pad>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
]
TEXT = [
    "What is the capital of France? It is Paris, a city on the river Seine.",
    "user assistant system model Question Answer [INST] [/INST] Today Date",
    "Write a short story about a cat. Once upon a time there was a small grey cat.",
    "### User:\nName three colours.\n\n### Assistant:\nRed, green and blue.\n\n",
]
Kind = Literal["byte_level", "byte_level_bos", "metaspace"]


def tokenizer_of(kind: Kind) -> Tokenizer:
    """GPT-2's kind; Llama 3's, which begins texts with bos; or Llama 2's with byte fallback."""
    if kind == "metaspace":
        return _metaspace()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    trimming = processors.ByteLevel(trim_offsets=True)
    begins = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    both = processors.Sequence([trimming, begins])
    tokenizer.post_processor = both if kind == "byte_level_bos" else trimming
    return tokenizer


def _metaspace() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=500, show_progress=False, special_tokens=["<unk>", *SPECIAL, *byte_tokens]
    )
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    # The trainer made the byte tokens special; in the model they are ordinary tokens.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] not in byte_tokens]
    return Tokenizer.from_str(json.dumps(state))


def model_folder(
    path: Path, template: str | None, kind: Kind = "byte_level", **config: Any
) -> Path:
    """A folder as a Hub snapshot has it; `config` goes over its tokenizer_config.json."""
    path.mkdir(parents=True, exist_ok=True)
    tokenizer_of(kind).save(str(path / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "clean_up_tokenization_spaces": False,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings | config))
    eos = json.loads((path / "tokenizer.json").read_text())["model"]["vocab"]["</s>"]
    (path / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": eos}))
    if template is not None:
        (path / "chat_template.jinja").write_text(template)
    return path


def template_text(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text()
