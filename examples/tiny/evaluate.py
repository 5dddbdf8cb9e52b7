"""The exam of the tiny model: exact answers, greedily, on prompts drawn from another seed."""

import math
import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from . import advice, copying, knowing, records, rewriting, stories
from .copying import Rng, Turn
from .mixture import Task
from .tokenizer import render


def new_sum(rng: Rng) -> Turn:
    return knowing.arithmetic(rng, held_out=True)


SKILLS: dict[str, list[Task]] = {
    "copying": [copying.repeat, copying.reverse, copying.nth, copying.after],
    "look-up": [copying.where, copying.owner, copying.key_value],
    "JSON": [records.to_json, records.from_json, records.json_list, records.json_pick],
    "reading a message": [records.about_message],
    "facts": [knowing.fact],
    "plain sums kept out of training": [new_sum],
    "lists": [knowing.sorting, knowing.odd_one_out, knowing.change_list],
    "rewriting": [rewriting.tense, rewriting.replace, rewriting.shouted, rewriting.framed],
    "instructions": [advice.how_to],
    "refusing what harms": [advice.refusal],
    "answering harmless look-alikes": [advice.look_alike],
    "opinions": [advice.opinion],
}


def load(folder: Path) -> tuple[Any, Any]:
    """The model in float32, and its tokenizer set to pad on the left, for generating."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder, padding_side="left")


def answers(
    model: Any, tokenizer: Any, chats: list[list[dict[str, str]]], size: int = 40
) -> list[str]:
    """One greedy answer to each chat."""
    texts = [render(chat) + "<|assistant|>" for chat in chats]
    found: list[str] = []
    for at in range(0, len(texts), size):
        batch = tokenizer(
            texts[at : at + size], return_tensors="pt", padding=True, add_special_tokens=False
        )
        out = model.generate(**batch, max_new_tokens=96, do_sample=False)
        new = out[:, batch["input_ids"].shape[1] :]
        found += tokenizer.batch_decode(new, skip_special_tokens=True)
    return found


def ask(task_list: list[Task], seed: str, n: int) -> list[Turn]:
    rng = random.Random(seed)
    return [task_list[i % len(task_list)](rng) for i in range(n)]


def exam(model: Any, tokenizer: Any, n: int = 60) -> dict[str, float]:
    """The share of exact answers of each skill."""
    scores: dict[str, float] = {}
    for skill, tasks in SKILLS.items():
        turns = ask(tasks, f"exam {skill}", n)
        got = answers(model, tokenizer, [[{"role": "user", "content": q}] for q, _ in turns])
        scores[skill] = sum(g == a for g, (_, a) in zip(got, turns, strict=True)) / n
    return scores


def perplexity(model: Any, tokenizer: Any, texts: list[str]) -> float:
    """Per token, over whole documents."""
    total, count = 0.0, 0
    for text in texts:
        ids = tokenizer(render(text), return_tensors="pt", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model(ids).logits[0, :-1]
        total += float(F.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        count += ids.shape[1] - 1
    return math.exp(total / count)


def story_perplexity(model: Any, tokenizer: Any, n: int = 40) -> float:
    rng = random.Random("exam stories")
    return perplexity(model, tokenizer, [stories.story(rng) for _ in range(n)])


def table(scores: dict[str, float], story: float, n: int = 60) -> str:
    rows = [f"| {skill} | {score:.0%} |" for skill, score in scores.items()]
    return "\n".join(
        [f"| skill ({n} prompts each) | exact answers |", "|---|---|", *rows,
         f"| perplexity per token of new stories | {story:.2f} |"]
    )  # fmt: skip
