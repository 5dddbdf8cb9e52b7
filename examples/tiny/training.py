"""Pre-training of the tiny model: one loop, checkpoints that are whole, and the card at the end."""

import argparse
import shutil
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from . import card
from .batches import ROW_TOKENS, Batch, stream
from .network import TinyLlama, save_network
from .optimizer import MixedOptimizer
from .tokenizer import save_tokenizer, train_tokenizer, twins

SEED = "luthier-tiny"
STEPS = 3500
WARMUP_STEPS, DECAY_STEPS = 40, 1800
LESSONS = FIRST_STEPS, SECOND_STEPS, COPYING_STEPS = 250, 750, 1200  # see batches.stream
MODEL = Path(__file__).parents[1] / "models" / "luthier-tiny"


def rate(step: int, steps: int) -> float:
    """The share of the highest learning rate: up, flat, then down in a straight line."""
    left = (steps - step) / min(DECAY_STEPS, steps)
    return min(1.0, (step + 1) / WARMUP_STEPS, left)


def batches_by(step: int) -> int:
    """The batches of the steps before `step`: one each while there is only look-up, then two."""
    return step + max(0, step - SECOND_STEPS)


def loss_of(hidden: Tensor, head: Tensor, batch: Batch) -> Tensor:
    logits = F.linear(hidden.flatten(0, 1), head).float()
    losses = F.cross_entropy(logits, batch.targets.flatten(), reduction="none")
    weights = batch.weights.flatten()
    return (losses * weights).sum() / weights.sum()


def save(masters: dict[str, Tensor], tokenizer: Tokenizer, folder: Path) -> None:
    """Writes beside `folder` first, so that a reader never sees half a model."""
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    save_network(masters, fresh)
    save_tokenizer(tokenizer, fresh)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def train(tokenizer: Tokenizer, args: argparse.Namespace) -> float:
    """Leaves the model in `args.out`; returns the minutes that it took."""
    torch.manual_seed(0)
    network = TinyLlama(twins(tokenizer)).bfloat16()
    optimizer = MixedOptimizer(network)
    forward = network if args.no_compile else torch.compile(network, dynamic=False)
    batches = stream(tokenizer, SEED, tuple(map(batches_by, LESSONS)))
    started, mean = time.monotonic(), 0.0
    for step in range(args.steps):
        several = batches_by(step + 1) - batches_by(step)
        for _ in range(several):
            batch = next(batches)
            loss = loss_of(forward(batch.ids, batch.mask), network.embed.weight, batch)
            (loss / several).backward()
            mean = 0.98 * mean + 0.02 * loss.item() if step else loss.item()
        optimizer.step(rate(step, args.steps))
        minutes = (time.monotonic() - started) / 60
        if step % 25 == 24:
            print(f"step {step + 1}/{args.steps} loss {mean:.3f} minutes {minutes:.1f}", flush=True)
        if step % args.save_every == args.save_every - 1 or step == args.steps - 1:
            save(optimizer.masters, tokenizer, args.out)
    return minutes


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Pre-train the tiny model and write its card.")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=MODEL)
    parser.add_argument("--no-compile", action="store_true", help="where there is no C++ compiler")
    parser.add_argument("--save-every", type=int, default=200, help="steps")
    parser.add_argument("--exam-only", action="store_true", help="print the exam of --out")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)  # or the embedding's gradient adds up in any order
    if args.exam_only:
        print(card.table(*card.grade(args.out)))
        return
    minutes = train(train_tokenizer(SEED), args)
    tokens = batches_by(args.steps) * ROW_TOKENS
    text = card.write(args.out, args.steps, tokens, minutes)
    (args.out / "README.md").write_text(text, encoding="utf-8")
