"""A training child without a model: a seeded loop that writes files, and fails as its rows tell it.

The first row's words are a `Script`. Its state is a chain of hashes, so two runs end in the same
adapter only where each step was made once and in order.
"""

import contextlib
import hashlib
import json
import os
import resource
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel
from safetensors.numpy import save_file

from engine.plan import PLAN, Failed, Finished, Probe, Report, Saved, Started, Stepped, Stopped
from engine.plan import TrainPlan as Plan

MODULE = "base_model.model.model.layers.0.self_attn.q_proj"
SIZE = 8
ORPHANED = 75


class Script(BaseModel):
    """What a run does. `at` a step: its process is killed (`kill`) or crashes (`crash`), or kills
    its worker (`murder`), is silent for ever (`hang`), runs out of memory (`hog`) or fills its disk
    (`fill`). `once`: in its first attempt only, by a file there.
    """

    steps: int = 10
    step_s: float = 0.01
    at: dict[int, str] = {}
    once: Path | None = None
    weight_bytes: int = 0


def row_of(script: Script) -> dict[str, Any]:
    """The dataset's only row, which says what the run does."""
    words = {"role": "user", "content": script.model_dump_json()}
    return {"messages": [words, {"role": "assistant", "content": "ok"}]}


def script_of(plan: Plan) -> Script:
    with plan.dataset_path.open() as rows:
        row = json.loads(rows.readline())
    return Script.model_validate_json(row["messages"][0]["content"])


def main(connection: Connection, plan_json: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    plan = PLAN.validate_json(plan_json)
    assert isinstance(plan, Plan)
    run = Run(connection, plan)
    try:
        run.train()
    except OSError as error:
        full = "The worker's disk is full; the operator has to make room on it."
        run.send(Failed(code="disk_full", message=f"{full} ({error.strerror})", retryable=True))
    except MemoryError:
        text = "Out of memory; lower `method.per_device_batch_size`."
        run.send(Failed(code="out_of_memory", message=text))


class Run:
    def __init__(self, connection: Connection, plan: Plan) -> None:
        self._link, self._plan, self._script = connection, plan, script_of(plan)
        self._state = {"step": 0, "digest": hashlib.sha256(str(plan.seed).encode()).hexdigest()}
        if plan.resume_from is not None:
            self._state = json.loads((plan.resume_from / "state.json").read_text())

    def send(self, report: Report) -> None:
        try:
            self._link.send_bytes(report.model_dump_json().encode())
        except OSError:
            os._exit(ORPHANED)

    def train(self) -> None:
        script, first = self._script, int(self._state["step"])
        self.send(
            Started(
                total_steps=script.steps,
                rows=1,
                trained_tokens=1,
                trainable_parameters=2 * SIZE,
                resumed_step=first,
            )
        )
        for step in range(first + 1, script.steps + 1):
            if (word := self._told()) is not None:
                if word == "pause" and step > first + 1:
                    self._save(step - 1)
                self.send(Stopped(directive="cancel" if word == "cancel" else "pause"))
                return
            self._misbehave(step)
            self._step(step)
            if step % self._plan.checkpoint_every == 0 and step < script.steps:
                self._save(step)
        self._finish()

    def _step(self, step: int) -> None:
        time.sleep(self._script.step_s)
        digest = hashlib.sha256(f"{self._state['digest']}/{step}".encode()).hexdigest()
        self._state = {"step": step, "digest": digest}
        loss = int(digest[:8], 16) / 2**32
        self.send(
            Stepped(step=step, total_steps=self._script.steps, epoch=0.0, metrics={"loss": loss})
        )

    def _save(self, step: int) -> None:
        folder = self._plan.work_dir / f"checkpoint-{step}"
        folder.mkdir(exist_ok=True)
        (folder / "state.json").write_text(json.dumps(self._state))
        (folder / "optimizer.bin").write_bytes(bytes(4096))
        self.send(Saved(step=step, path=folder, metrics={}))

    def _told(self) -> str | None:
        """The last word of the runner; this process ends with it."""
        word = None
        try:
            while self._link.poll():
                word = self._link.recv_bytes().decode()
        except (EOFError, OSError):
            os._exit(ORPHANED)
        return word

    def _misbehave(self, step: int) -> None:
        script = self._script
        what = script.at.get(step)
        if what is None or (script.once is not None and script.once.exists()):
            return
        if script.once is not None:
            script.once.touch()
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif what == "murder":
            os.kill(os.getsid(0), signal.SIGKILL)  # each worker leads a session
            time.sleep(60)
        elif what == "hang":
            while True:
                time.sleep(3600)
        elif what == "hog":
            _hog()
        elif what == "fill":
            _fill(self._plan.work_dir / "filler")

    def _finish(self) -> None:
        folder = self._plan.work_dir / "adapter"
        folder.mkdir()
        write_adapter(folder, str(self._state["digest"]))
        if self._script.weight_bytes:
            (folder / "notes.txt").write_bytes(bytes(self._script.weight_bytes))
        probe = Probe(token_ids=(1, 2), prompt_tokens=1, logprobs=(-1.0,), base_logprobs=(-2.0,))
        self.send(
            Finished(
                path=folder,
                kind="lora",
                training_s=self._script.steps * self._script.step_s,
                metrics={},
                probes=(probe,),
                contract={"tokenizer_sha256": "0" * 64},
            )
        )


def write_adapter(folder: Path, digest: str) -> None:
    """A LoRA of rank 1 whose numbers are the digest's."""
    numbers = np.frombuffer(bytes.fromhex(digest), dtype=np.uint8)[:SIZE].astype(np.float32) / 256
    weights = {
        f"{MODULE}.lora_A.weight": numbers.reshape(1, SIZE),
        f"{MODULE}.lora_B.weight": numbers.reshape(SIZE, 1),
    }
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def _hog() -> None:
    """Ask for memory until there is none; a quarter of a GiB is all that this process may have."""
    resource.setrlimit(resource.RLIMIT_AS, (256 << 20, 256 << 20))
    held = []
    while True:
        held.append(bytearray(64 << 20))


def _fill(path: Path) -> None:
    """Write until the disk takes no more. Raises OSError."""
    with contextlib.closing(path.open("wb", buffering=0)) as file:
        while True:
            file.write(bytes(1 << 20))
