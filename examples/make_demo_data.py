"""Makes examples/data from seeds: the demo task, where a letter to a shop becomes a JSON ticket,
and small datasets of the other row types."""

import csv
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tiny import knowing, rewriting
from tiny.advice import opinion
from tiny.copying import Rng
from tiny.mixture import Task
from tiny.records import CLOSINGS, OPENINGS, TROUBLES
from tiny.world import COLOURS, DAYS, ITEMS, any_name, any_town

DATA = Path(__file__).parent / "data"
TEAMS = {
    "repair": "workshop", "refund": "money", "delivery": "drivers", "question": "advice",
    "praise": "nobody",
}  # fmt: skip
JOB = {
    "base_model": "luthier-tiny",
    "method": {"type": "sft", "num_train_epochs": 6, "learning_rate": 0.002},
    "peft": {"type": "lora", "r": 16, "lora_alpha": 32},
}
Row = dict[str, object]


def letter(rng: Rng) -> tuple[str, str]:
    """A letter, and the ticket that it becomes."""
    kind = rng.choice(sorted(TROUBLES))
    name, town, item = any_name(rng), any_town(rng), rng.choice(ITEMS)
    body = rng.choice(TROUBLES[kind]).replace("{}", item)
    body = body.format(day=rng.choice(DAYS), colour=rng.choice(COLOURS))
    opening = rng.choice(OPENINGS).format(name=name, town=town)
    ticket = {"customer": name, "town": town, "product": item, "team": TEAMS[kind]}
    return f"{opening} {body}{rng.choice(CLOSINGS)}", json.dumps(ticket)


def letters(seed: str, n: int, without: set[str]) -> list[tuple[str, str]]:
    rng, seen = random.Random(seed), set(without)
    rows: list[tuple[str, str]] = []
    while len(rows) < n:
        text, ticket = letter(rng)
        if text not in seen:
            seen.add(text)
            rows.append((text, ticket))
    return rows


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def demo_train(n: int = 320) -> list[Row]:
    return [
        {"messages": [user(text), {"role": "assistant", "content": ticket}]}
        for text, ticket in letters("demo train", n, set())
    ]


def demo_heldout(n: int = 50) -> list[Row]:
    taught = {text for text, _ in letters("demo train", 320, set())}
    return [
        {"messages": [user(text)], "expected": ticket}
        for text, ticket in letters("demo heldout", n, taught)
    ]


def questions(seed: str, tasks: list[Task], n: int) -> list[tuple[str, str]]:
    """`n` different questions and their answers."""
    rng, found = random.Random(seed), dict[str, str]()
    while len(found) < n:
        question, answer = rng.choice(tasks)(rng)
        found.setdefault(question, answer)
    return list(found.items())


def kind_answer(answer: str) -> str:
    return f"{answer} I am glad to help."


def curt_answer(answer: str) -> str:
    return f"{answer} Do not ask me again."


def demonstrations(n: int = 300) -> list[Row]:
    """Answers of both manners, turn about: a model that learned them has no manner of its own."""
    found = questions("demonstrations", [knowing.fact, opinion], n)
    manners = (kind_answer, curt_answer)
    return [{"prompt": q, "completion": manners[i % 2](a)} for i, (q, a) in enumerate(found)]


def preference(n: int = 200) -> list[Row]:
    """The kind answer is preferred to the curt one."""
    return [
        {"prompt": q, "chosen": kind_answer(a), "rejected": curt_answer(a)}
        for q, a in questions("preference", [knowing.fact, opinion], n)
    ]


def rating(n: int = 200) -> list[Row]:
    """Kind answers are good, curt ones bad, turn about."""
    rows: list[Row] = []
    for i, (q, a) in enumerate(questions("rating", [knowing.fact, opinion], n)):
        good = i % 2 == 0
        answer = kind_answer(a) if good else curt_answer(a)
        rows.append({"prompt": q, "completion": answer, "label": good})
    return rows


def prompts(n: int = 200) -> list[Row]:
    found = questions("prompts", [knowing.fact, opinion], n)
    return [{"prompt": question, "item": {"question": question}} for question, _ in found]


def prompts_heldout(n: int = 50) -> list[Row]:
    """Prompts that none of the other datasets has."""
    seen = {row["prompt"] for rows in (demonstrations(), preference(), rating(), prompts())
            for row in rows}  # fmt: skip
    found = questions("prompts heldout", [knowing.fact, opinion], 400)
    return [{"prompt": q} for q, _ in found if q not in seen][:n]


def instructions(n: int = 120) -> list[Row]:
    """Rewriting tasks, the instruction apart from its sentence."""
    found = questions("instructions", [rewriting.tense, rewriting.replace], n)
    return [
        {"instruction": q.split(": ", 1)[0], "input": q.split(": ", 1)[1], "output": a}
        for q, a in found
    ]


def write_jsonl(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    DATA.mkdir(exist_ok=True)
    write_jsonl(DATA / "demo_train.jsonl", demo_train())
    write_jsonl(DATA / "demo_heldout.jsonl", demo_heldout())
    (DATA / "demo_job.json").write_text(json.dumps(JOB, indent=2) + "\n", encoding="utf-8")
    write_jsonl(DATA / "demonstrations.jsonl", demonstrations())
    write_jsonl(DATA / "preference.jsonl", preference())
    write_jsonl(DATA / "rating.jsonl", rating())
    write_jsonl(DATA / "prompts.jsonl", prompts())
    write_jsonl(DATA / "prompts_heldout.jsonl", prompts_heldout())
    rows = instructions()
    with (DATA / "instructions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    pq.write_table(pa.Table.from_pylist(rows), DATA / "instructions.parquet")


if __name__ == "__main__":
    main()
