"""Does every method learn? Each with each PEFT kind, through the HTTP API, on held-out rows.

Run by `make methods-table`, which writes docs/methods.md and, for programs, docs/methods.json; with
ARGS="full" that kind alone is measured anew. Demonstrations teach the model that ships
two manners, turn about; what comes after is to choose the kind one, which is the rule that made the
comparisons, the ratings and the reward. The figure is how many of the answers to held-out prompts,
sampled at temperature 1, are kind, which is also their mean reward by the grader of GRPO. A method
passes with that figure above its bar, and with what its job says of itself on the right side too.
"""

import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cli.client import Client
from cli.dataset import send
from cli.home import key_path
from cli.service import Service
from jobs.settings import REPO, Settings

DATA = REPO / "examples" / "data"
TABLE = REPO / "docs" / "methods.md"
FIGURES = REPO / "docs" / "methods.json"
KIND = "I am glad to help."
BASE = "luthier-tiny"
ROWS = {
    "tickets": "demo_train.jsonl",
    "demonstrations": "demonstrations.jsonl",
    "preference": "preference.jsonl",
    "rating": "rating.jsonl",
    "prompts": "prompts.jsonl",
}
PEFTS: dict[str, dict[str, Any]] = {
    "lora": {"type": "lora", "r": 16},
    "lora, DoRA": {"type": "lora", "r": 16, "use_dora": True},
    "qlora": {"type": "qlora", "r": 16},
    "full": {"type": "full"},
    "prompt_tuning": {"type": "prompt_tuning", "num_virtual_tokens": 60},
    "prefix_tuning": {"type": "prefix_tuning", "num_virtual_tokens": 20},
}
GRADER = {"type": "string_check", "name": "kind", "operation": "like", "reference": KIND}
GRADER |= {"input": "{{ sample.output_text }}"}
NEW_TOKENS = 40
MAX_KL = 20.0  # nats an answer, of PPO; GRPO's KL is of a token


@dataclass(frozen=True)
class Also:
    """What a job says of itself on held-out rows, and whether that is on the right side."""

    text: str
    holds: bool


NOTHING = Also("", True)


@dataclass(frozen=True)
class Line:
    """A row of the table."""

    method: str
    peft: str
    figure: str
    before: float
    after: float
    bar: float
    seconds: float
    memory_mb: float
    also: Also

    @property
    def passed(self) -> bool:
        return self.after >= self.bar and self.also.holds


@dataclass
class Bench:
    """A running service, the datasets in it, and what was found so far."""

    client: Client
    datasets: dict[str, str] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)

    def job(self, rows: str, method: dict[str, Any], peft: str, **more: Any) -> dict[str, Any]:
        """Run a job to its end; it must succeed."""
        spec = {"base_model": BASE, "dataset": self.datasets[rows], "method": method}
        job = self.client.post("/jobs", spec | {"peft": PEFTS[peft]} | more)
        while job["status"] in ("queued", "running"):
            time.sleep(0.2)
            job = self.client.get(f"/jobs/{job['id']}")
        if job["status"] != "succeeded":
            raise SystemExit(f"{method['type']} with {peft} {job['status']}: {job['error']}")
        return job

    def note(self, job: dict[str, Any], peft: str, figure: str, before: float, after: float,
             bar: float, also: Also = NOTHING) -> None:  # fmt: skip
        metrics = self.client.get(f"/adapters/{job['adapter_id']}")["metrics"]
        line = Line(
            job["method"]["type"],
            peft,
            figure,
            before,
            after,
            bar,
            job["timings"]["training_s"],
            metrics["peak_memory_bytes"] / (1 << 20),
            also,
        )
        self.lines.append(line)
        print(row_of(line), flush=True)

    def kindness(self, adapter_id: str | None, prompts: list[str]) -> float:
        """The share of sampled answers that end as kind ones do."""
        kind = 0
        for number, prompt in enumerate(prompts):
            body = {"messages": [{"role": "user", "content": prompt}], "seed": number}
            body |= {"max_tokens": NEW_TOKENS, "temperature": 1.0}
            body |= {"adapter_id": adapter_id} if adapter_id else {}
            kind += self.client.post("/generate", body)["text"].strip().endswith(KIND)
        return kind / len(prompts)

    def exact(self, adapter_id: str | None) -> float:
        """The share of held-out letters that become exactly their ticket."""
        rows = read(DATA / "demo_heldout.jsonl")
        right = 0
        for row in rows:
            body = {"messages": row["messages"], "max_tokens": 64, "temperature": 0}
            body |= {"adapter_id": adapter_id} if adapter_id else {}
            right += self.client.post("/generate", body)["text"].strip() == row["expected"]
        return right / len(rows)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def held_out() -> list[str]:
    """Prompts that no other dataset has."""
    return [row["prompt"] for row in read(DATA / "prompts_heldout.jsonl")]


def rate(peft: str, low: float) -> float:
    """Virtual tokens need a higher learning rate than matrices, and whole weights a lower one."""
    return low * {"full": 1 / 8, "prompt_tuning": 25, "prefix_tuning": 20}.get(peft, 1)


def run(bench: Bench, pefts: list[str]) -> None:
    prompts = held_out()
    for peft in pefts:
        tickets = bench.job("tickets", sft(peft, epochs=12 if peft in VIRTUAL else 6), peft)
        bench.note(tickets, peft, "exact match", bench.exact(None), bench.exact(
            tickets["adapter_id"]), SFT_BAR[peft])  # fmt: skip
        start = bench.job("demonstrations", sft(peft, epochs=4), peft)["adapter_id"]
        before = bench.kindness(start, prompts)
        reward = None if peft in VIRTUAL else score(bench, peft)
        for method, (rows, low) in CHOOSING.items():
            epochs = 8 if peft == "prefix_tuning" else 3
            job = bench.job(rows, offline(method, rate(peft, low), epochs), peft, init=start)
            after = bench.kindness(job["adapter_id"], prompts)
            bench.note(job, peft, "kind answers", before, after, 0.9, preferred(bench, job))
        for method in online(peft, reward):
            job = bench.job("prompts", method, peft, init=start)
            after = bench.kindness(job["adapter_id"], prompts)
            bench.note(job, peft, "kind answers", before, after, 0.9, near(bench, job))


# The rows of each method that learns to choose, and its learning rate for matrices.
CHOOSING = {"dpo": ("preference", 1e-4), "orpo": ("preference", 5e-4), "kto": ("rating", 1e-4)}
VIRTUAL = ("prompt_tuning", "prefix_tuning")  # no reward model and no PPO: see jobs/combinations.py
SFT_BAR = dict.fromkeys(PEFTS, 0.9) | {"prompt_tuning": 0.3, "prefix_tuning": 0.3}


def score(bench: Bench, peft: str) -> str:
    """Train a reward model; its adapter."""
    job = bench.job("preference", offline("reward", rate(peft, 1e-3), 4), peft)
    accuracy = evaluations(bench, job, "eval_accuracy")
    bench.note(job, peft, "pair accuracy", accuracy[0], accuracy[-1], 0.9)
    adapter: str = job["adapter_id"]
    return adapter


def preferred(bench: Bench, job: dict[str, Any]) -> Also:
    """Of the held-out rows: the margin, and where answers come in pairs the share put right."""
    margin = evaluations(bench, job, "eval_rewards/margins")[-1]
    right = evaluations(bench, job, "eval_rewards/accuracies")
    if not right:
        return Also(f"margin {margin:.2f}", margin > 0)
    return Also(f"margin {margin:.2f}, pairs {right[-1]:.0%}", margin > 0 and right[-1] >= 0.9)


def near(bench: Bench, job: dict[str, Any]) -> Also:
    """The KL to the starting policy, which stays below its bound in every step."""
    distances = evaluations(bench, job, "kl")
    return Also(f"KL {distances[-1]:.2f}", max(distances) < MAX_KL)


def sft(peft: str, epochs: float) -> dict[str, Any]:
    return {
        "type": "sft",
        "num_train_epochs": epochs,
        "learning_rate": rate(peft, 2e-3),
        "max_length": 384,
    }


def offline(method: str, learning_rate: float, epochs: float) -> dict[str, Any]:
    return {
        "type": method,
        "num_train_epochs": epochs,
        "learning_rate": learning_rate,
        "max_length": 128,
        "validation_split": 0.2,
    }


def online(peft: str, reward_model: str | None) -> list[dict[str, Any]]:
    common = {
        "learning_rate": rate(peft, 5e-4),
        "max_length": 64,
        "max_completion_length": NEW_TOKENS,
        "per_device_batch_size": 16,
        "max_steps": 25,
        "max_kl": MAX_KL,
    }
    ppo = common | {"type": "ppo", "reward_model": reward_model}
    grpo = common | {"type": "grpo", "grader": GRADER, "num_generations": 8, "beta": 0.02}
    return [ppo, grpo] if peft.startswith(("lora", "qlora")) else [grpo]


def evaluations(bench: Bench, job: dict[str, Any], name: str) -> list[float]:
    events = bench.client.get(f"/jobs/{job['id']}/metrics")["data"]
    return [event["data"][name] for event in events if name in event["data"]]


def row_of(line: Line) -> str:
    return (
        f"| `{line.method}` | {line.peft} | {line.figure} | {line.before:.0%} | {line.after:.0%} | "
        f"{line.bar:.0%} | {line.also.text} | {line.seconds:.0f} | {line.memory_mb:.0f} |"
    )


HEAD = f"""# Every method, measured

Made by `make methods-table`: jobs through the HTTP API on the model that ships, without a GPU, all
from one seed. Figures are of rows that were held out. *Exact match*: letters that become exactly
their ticket, greedily. *Pair accuracy*: of the reward model. *Kind answers*: of answers sampled at
temperature 1, those that end as the preferred ones do, which is their mean reward by the grader;
before is the adapter that the job starts from, which learned both manners. *Held-out rows*: the
margin between the preferred and the other answers' implicit rewards (ORPO: of their log-odds), and
the share of pairs put right; of PPO and GRPO the last KL to the starting policy, which must stay
below {MAX_KL:g} in every step.

| method | PEFT | figure | before | after | bar | held-out rows | seconds | peak MB |
|---|---|---|---|---|---|---|---|---|
"""


def write(lines: list[Line], pefts: list[str]) -> None:
    """The table, with these kinds measured anew and the others as they were."""
    kept = json.loads(FIGURES.read_text()) if FIGURES.exists() else []
    found = [line for line in kept if line["peft"] not in pefts] + [asdict(line) for line in lines]
    found.sort(key=lambda line: list(PEFTS).index(line["peft"]))
    FIGURES.write_text(json.dumps(found, indent=1) + "\n")
    rows = [Line(**(line | {"also": Also(**line["also"])})) for line in found]
    TABLE.write_text(HEAD + "".join(row_of(line) + "\n" for line in rows))


def main() -> None:
    pefts = sys.argv[1:] or list(PEFTS)
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data_dir=Path(folder), port=0, inference_port=0)
        with Service(settings) as service:
            for _ in service.starting():
                pass
            key = key_path(settings.data_dir).read_text().strip()
            with Client(service.url, key) as client:
                bench = Bench(client)
                bench.datasets = {n: send(client, DATA / f)["id"] for n, f in ROWS.items()}
                run(bench, pefts)
    write(bench.lines, pefts)
    missed = [line for line in bench.lines if not line.passed]
    if missed:
        sys.exit("below the bar: " + ", ".join(f"{m.method} with {m.peft}" for m in missed))


if __name__ == "__main__":
    main()
