"""The byte-level BPE tokenizer and the chat template of luthier-tiny."""

import json
import random
import re
from collections import Counter
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from .mixture import Document, document

BOS, END, PAD = "<|bos|>", "<|end|>", "<|pad|>"
ROLES = ("system", "user", "assistant")
SPECIAL = [PAD, BOS, END, *(f"<|{role}|>" for role in ROLES)]
SPACE = "\u0120"  # a space, in the byte-level alphabet
MERGES = 1500
VOCAB_SIZE = 2688
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


def _bpe(tokens: list[str], merges: list[tuple[str, str]]) -> Tokenizer:
    return Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))


def _cut_words(texts: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The byte-level alphabet with the merged pieces, and the merges, of words without spaces."""
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split(Regex(r"\s+"), "removed"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + MERGES, initial_alphabet=alphabet, show_progress=False
    )
    bare.train_from_iterator(texts, trainer)
    merges = [(a, b) for a, b in json.loads(bare.to_str())["model"]["merges"]]
    return [*alphabet, *(a + b for a, b in merges)], merges


def _after_spaces(
    texts: list[str], tokens: list[str], merges: list[tuple[str, str]], n: int
) -> list[str]:
    """The `n` pieces that most often begin what follows a space."""
    cut = _bpe(tokens, merges)
    cut.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    found = re.findall(r" ([^\W\d]+|[^\w\s]+)", "\n".join(texts))
    counts: Counter[str] = Counter()
    for word, times in Counter(found).items():
        counts[cut.encode(word).tokens[0]] += times
    return sorted(counts, key=lambda piece: (-counts[piece], piece))[:n]


def train_tokenizer(seed: str, documents: int = 30_000) -> Tokenizer:
    """A word is cut into the same pieces wherever it stands: a piece that begins words has a twin
    with a space before it, and the twins merge last. What is copied out of the middle of a sentence
    is then the same tokens at the start of an answer, but for the twin. Digits stand alone, so that
    numbers add and copy digit by digit; all 256 bytes are known."""
    texts = plain_texts(seed, documents)
    tokens, merges = _cut_words(texts)
    spaced = _after_spaces(texts, tokens, merges, VOCAB_SIZE - len(SPECIAL) - len(tokens))
    tokenizer = _bpe(
        [*SPECIAL, *tokens, *(SPACE + t for t in spaced)],
        [*merges, *((SPACE, t) for t in spaced)],
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    return tokenizer


def twins(tokenizer: Tokenizer) -> list[tuple[int, int]]:
    """(token, the same with a space before it), by id."""
    ids = tokenizer.get_vocab()
    found = ((ids.get(token[1:]), i) for token, i in ids.items() if token.startswith(SPACE))
    return sorted((bare, i) for bare, i in found if bare is not None)


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
