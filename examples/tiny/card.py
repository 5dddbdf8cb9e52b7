"""The model card of the tiny model, with the exam's table in it."""

from pathlib import Path

from safetensors import safe_open

from .evaluate import exam, load, story_perplexity, table
from .network import HEADS, HIDDEN, INNER, KV_HEADS, LAYERS
from .tokenizer import MAX_LENGTH, VOCAB_SIZE

__all__ = ["grade", "table", "write"]

CARD = Path(__file__).with_name("card.md")


def grade(folder: Path) -> tuple[dict[str, float], float]:
    model, tokenizer = load(folder)
    return exam(model, tokenizer), story_perplexity(model, tokenizer)


def write(folder: Path, steps: int, tokens: int, minutes: float) -> str:
    weights = folder / "model.safetensors"
    with safe_open(weights, "pt") as file:
        parameters = sum(file.get_tensor(name).numel() for name in file.offset_keys())
    return CARD.read_text(encoding="utf-8").format(
        millions=parameters / 1e6,
        parameters=parameters,
        megabytes=weights.stat().st_size / 1e6,
        hidden=HIDDEN,
        layers=LAYERS,
        heads=HEADS,
        kv_heads=KV_HEADS,
        inner=INNER,
        vocab=VOCAB_SIZE,
        length=MAX_LENGTH,
        steps=steps,
        tokens=tokens / 1e6,
        minutes=minutes,
        table=table(*grade(folder)),
    )
