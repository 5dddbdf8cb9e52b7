"""The byte-level BPE tokenizer and the chat template of luthier-tiny."""

import json
import random
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from .mixture import Document, document

BOS, END, PAD = "<|bos|>", "<|end|>", "<|pad|>"
ROLES = ("system", "user", "assistant")
SPECIAL = [PAD, BOS, END, *(f"<|{role}|>" for role in ROLES)]
VOCAB_SIZE = 2048
MAX_LENGTH = 512

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def render(doc: Document) -> str:
    """The text of a document with its markup; what CHAT_TEMPLATE renders, for a chat."""
    if isinstance(doc, str):
        return BOS + doc + END
    return BOS + "".join(f"<|{m['role']}|>{m['content']}{END}" for m in doc)


def plain_texts(seed: str, documents: int) -> list[str]:
    rng = random.Random(seed)
    texts: list[str] = []
    for _ in range(documents):
        doc = document(rng)
        texts += [doc] if isinstance(doc, str) else [m["content"] for m in doc]
    return texts


def train_tokenizer(seed: str, documents: int = 30_000) -> Tokenizer:
    """Digits stand alone, so that numbers add and copy digit by digit; all 256 bytes are known."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(plain_texts(seed, documents), trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": END,
        "pad_token": PAD,
        "extra_special_tokens": [f"<|{role}|>" for role in ROLES],
        "model_max_length": MAX_LENGTH,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
