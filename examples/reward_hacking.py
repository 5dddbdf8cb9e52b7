"""What the KL penalty is for: PPO against a reward with a loophole, with the penalty and without.

The grader wants kind and short answers. It was meant to make them friendly; but nothing in it asks
for an answer to the question, so "I am glad to help." alone gets the most. Needs `make serve`
running. Prints, of both runs, the reward and the KL that the jobs report, and how many answers
still say something about the question.
"""

from pathlib import Path

import httpx
from align import KIND, held_out
from client import call, upload
from client import follow as watch

HERE = Path(__file__).resolve().parent
TEXT = "{{ sample.output_text }}"
GRADER = {
    "type": "multi",
    "graders": {
        "kind": {"type": "string_check", "input": TEXT, "operation": "like", "reference": KIND},
        "short": {"type": "length", "input": TEXT, "unit": "words", "maximum": 6},
    },
    "calculate_output": "kind + short",
}
SFT = {"type": "sft", "num_train_epochs": 4, "learning_rate": 2e-3}
PPO = {
    "type": "ppo",
    "grader": GRADER,
    "max_steps": 30,
    "learning_rate": 1e-3,
    "max_length": 64,
    "max_completion_length": 40,
    "per_device_batch_size": 16,
    "validation_split": 0.1,
}


def main(url: str, key: str) -> None:
    headers = {"authorization": f"Bearer {key}"}
    with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
        demonstrations = upload(client, HERE / "data" / "demonstrations.jsonl")["id"]
        prompts = upload(client, HERE / "data" / "prompts.jsonl")["id"]
        start = run(client, demonstrations, SFT, peft={"type": "lora", "r": 16})
        print(f"before: {answered(client, start):.0%} of the answers are about the question")
        for kl_coef in (0.0, 0.3):
            adapter = run(client, prompts, PPO | {"kl_coef": kl_coef}, init=start)
            metrics = call(client, "GET", f"/adapters/{adapter}")["metrics"]
            print(
                f"kl_coef {kl_coef}: reward {metrics['eval_reward']:.2f}, KL "
                f"{metrics['eval_kl']:.1f}, {answered(client, adapter):.0%} about the question"
            )


def run(client: httpx.Client, dataset: str, method: dict, **more: object) -> str:
    """Run a job to its end; its adapter."""
    spec = {"base_model": "luthier-tiny", "dataset": dataset, "method": method, **more}
    job = call(client, "POST", "/jobs", json=spec)
    watch(client, job["id"])
    adapter: str = call(client, "GET", f"/jobs/{job['id']}")["adapter_id"]
    return adapter


def answered(client: httpx.Client, adapter_id: str) -> float:
    """The share of sampled answers with a word of their prompt in them."""
    prompts, about = held_out(), 0
    for number, prompt in enumerate(prompts):
        body = {"adapter_id": adapter_id, "messages": [{"role": "user", "content": prompt}]}
        body |= {"max_tokens": 40, "temperature": 1.0, "seed": number}
        said = call(client, "POST", "/generate", json=body)["text"].replace(KIND, "").lower()
        asked = {word.strip("?.,").lower() for word in prompt.split()}
        about += any(word in said.split() for word in asked - {"a", "the", "i", "of", "is"})
    return about / len(prompts)


if __name__ == "__main__":
    main("http://127.0.0.1:8321", Path(".luthier/key").read_text().strip())
