"""How much more memory PPO takes than SFT, on a base that is large beside the process: 135M.

Run by `make bench-memory`. Both train LoRA adapters through the HTTP API with the same batch and
the same longest row; PPO's reward is a reward adapter. A job's peak is that of its own process.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.llama import NAME, llama_135m
from benchmarks.methods import DATA, Bench
from cli.client import Client
from cli.dataset import send
from cli.home import key_path
from cli.service import Service
from jobs.settings import REPO, Settings

TINY = REPO / "examples" / "models" / "luthier-tiny"
BAR = 1.6
BATCH, PROMPT, ANSWER = 8, 64, 64
COMMON: dict[str, Any] = {"per_device_batch_size": BATCH, "max_steps": 3}


def make_base(folder: Path) -> Path:
    """The tiny model's tokenizer and template on a Llama of 135M parameters, random weights."""
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    told = json.loads((folder / "config.json").read_text())
    kept = ("max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")
    llama_135m(**{name: told.get(name) for name in kept}).save_pretrained(folder)
    return folder


def peak(bench: Bench, rows: str, method: dict[str, Any]) -> tuple[str, float]:
    """The adapter of a job with this method, and the job's peak memory in MiB."""
    job = bench.job(rows, method | COMMON, "lora", base_model=NAME)
    metrics = bench.client.get(f"/adapters/{job['adapter_id']}")["metrics"]
    return job["adapter_id"], metrics["peak_memory_bytes"] / (1 << 20)


def measure(bench: Bench) -> float:
    _, sft = peak(bench, "long", {"type": "sft", "max_length": PROMPT + ANSWER})
    reward, _ = peak(bench, "preference", {"type": "reward", "max_length": PROMPT + ANSWER})
    told = {"max_length": PROMPT, "max_completion_length": ANSWER, "reward_model": reward}
    _, ppo = peak(bench, "prompts", {"type": "ppo"} | told)
    print(f"peak memory: sft {sft:.0f} MiB, ppo {ppo:.0f} MiB, ratio {ppo / sft:.2f}")
    return ppo / sft


def long_rows(path: Path) -> Path:
    """Conversations that fill PROMPT + ANSWER tokens, as PPO's prompts and answers may."""
    words = " ".join(["lamp"] * 4 * (PROMPT + ANSWER))
    said = [{"role": "user", "content": "say"}, {"role": "assistant", "content": words}]
    path.write_text((json.dumps({"messages": said}) + "\n") * 64)
    return path


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        base = make_base(root / "base")
        settings = Settings(
            data_dir=root / "data", port=0, inference_port=0, base_models={NAME: str(base)}
        )
        with Service(settings) as service:
            for _ in service.starting():
                pass
            key = key_path(settings.data_dir).read_text().strip()
            with Client(service.url, key) as client:
                bench = Bench(client)
                files = {"long": long_rows(root / "long.jsonl")}
                files |= {n: DATA / f"{n}.jsonl" for n in ("preference", "prompts")}
                bench.datasets = {n: send(client, path)["id"] for n, path in files.items()}
                ratio = measure(bench)
    if ratio > BAR:
        sys.exit(f"PPO takes more than {BAR} times the memory of SFT")


if __name__ == "__main__":
    main()
