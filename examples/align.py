"""From demonstrations and comparisons to an aligned model, in one pipeline: SFT, reward model, PPO.

The demonstrations answer in two manners, turn about; people liked the kind one better. Needs `make
serve` running. Prints how many answers are kind before and after PPO: the rule that made the
comparisons, which no stage was told.
"""

import json
import sys
import time
from pathlib import Path

import httpx
from client import call, upload

HERE = Path(__file__).resolve().parent
KIND = "I am glad to help."
ROWS = {"sft": "demonstrations.jsonl", "rm": "preference.jsonl", "ppo": "prompts.jsonl"}


def main(url: str, key: str) -> None:
    headers = {"authorization": f"Bearer {key}"}
    with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
        spec = json.loads((HERE / "pipeline.json").read_text())
        for stage, name in ROWS.items():
            spec["stages"][stage]["dataset"] = upload(client, HERE / "data" / name)["id"]
        pipeline = follow(client, call(client, "POST", "/pipelines", json=spec)["id"])
        for stage in ("sft", "ppo"):
            share = kindness(client, pipeline["stages"][stage]["adapter_id"])
            print(f"{stage}: {share:.0%} of the answers to held-out prompts are kind")


def follow(client: httpx.Client, pipeline_id: str) -> dict:
    """Print each change of a stage; the pipeline once it has ended well."""
    states: dict[str, str] = {}
    while True:
        pipeline = call(client, "GET", f"/pipelines/{pipeline_id}")
        for name, stage in pipeline["stages"].items():
            if states.get(name) != stage["state"]:
                states[name] = stage["state"]
                print(f"{name}: {stage['state']}", flush=True)
        if pipeline["status"] not in ("queued", "running", "paused"):
            break
        time.sleep(1)
    if pipeline["status"] != "succeeded":
        errors = [stage["error"] for stage in pipeline["stages"].values() if stage["error"]]
        sys.exit(f"pipeline {pipeline_id} {pipeline['status']}: {errors}")
    return pipeline


def kindness(client: httpx.Client, adapter_id: str, prompts: int = 50) -> float:
    """The share of kind answers, sampled, to prompts that no stage has seen."""
    kind = 0
    for number, prompt in enumerate(held_out()[:prompts]):
        body = {"adapter_id": adapter_id, "messages": [{"role": "user", "content": prompt}]}
        body |= {"max_tokens": 40, "temperature": 1.0, "seed": number}
        kind += KIND in call(client, "POST", "/generate", json=body)["text"]
    return kind / prompts


def held_out() -> list[str]:
    """Prompts that none of the datasets has."""
    rows = (HERE / "data" / "prompts_heldout.jsonl").read_text().splitlines()
    return [json.loads(row)["prompt"] for row in rows]


if __name__ == "__main__":
    main("http://127.0.0.1:8321", Path(".luthier/key").read_text().strip())
