"""The processes that share a training run: how they meet, and what they agree on."""

import os
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist

from engine.plan import Spread
from engine.train.errors import TrainingFailed

Word = Literal["continue", "pause", "cancel"]
WORDS: tuple[Word, ...] = ("continue", "pause", "cancel")


def join(spread: Spread, work_dir: Path) -> None:
    """Meet the other processes of the run, if there are any. Raises TrainingFailed.

    NCCL carries what is on GPUs, gloo what is not.
    """
    if spread.world == 1:
        return
    gpu = torch.cuda.is_available()
    if gpu and torch.cuda.device_count() < spread.processes:
        raise TrainingFailed(
            "too_few_gpus",
            f"This worker has {torch.cuda.device_count()} GPUs, and the job asks for "
            f"{spread.processes}; ask the operator for workers that have them.",
        )
    _tell_accelerate(spread)
    if gpu:
        torch.cuda.set_device(spread.local_rank)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if gpu else "gloo",
        init_method=f"tcp://{spread.master}" if spread.nodes > 1 else f"file://{work_dir}/meeting",
        rank=spread.rank,
        world_size=spread.world,
    )


def _tell_accelerate(spread: Spread) -> None:
    """It finds out that it is one of several processes from what torchrun would have set."""
    told = {
        "RANK": spread.rank,
        "WORLD_SIZE": spread.world,
        "LOCAL_RANK": spread.local_rank,
        "LOCAL_WORLD_SIZE": spread.processes,
        "OMP_NUM_THREADS": torch.get_num_threads(),
        "MASTER_ADDR": spread.master.rpartition(":")[0] or "127.0.0.1",
    }
    os.environ.update({name: str(value) for name, value in told.items()})  # noqa: TID251 - its way
    if spread.nodes == 1:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # noqa: TID251 - gloo reads it there


def world() -> int:
    """How many processes share this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number among them."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this is the process that reports and writes the result."""
    return rank() == 0


def agreed(word: Word) -> Word:
    """What the first process has, in all of them: they stop after the same step."""
    if world() == 1:
        return word
    place = torch.tensor([WORDS.index(word)])
    dist.broadcast(place, src=0)
    return WORDS[int(place)]


def total(count: float) -> float:
    """The sum of what every process has."""
    if world() == 1:
        return count
    number = torch.tensor([float(count)], dtype=torch.float64)
    dist.all_reduce(number)
    return float(number)


def bring(folder: Path, name: str) -> None:
    """Wait for everybody, and give the first process each one's own file in `folder`.

    On one machine they are in the same folder already.
    """
    if world() == 1:
        return
    found: list[tuple[str, bytes]] | None = [("", b"")] * world() if is_first() else None
    dist.gather_object((name, (folder / name).read_bytes()), found)
    for its_name, content in found or ():
        if not (folder / its_name).exists():
            (folder / its_name).write_bytes(content)


def is_cut_off(error: Exception) -> bool:
    """Whether this is what a process sees of another one that has ended."""
    if world() == 1:
        return False
    return isinstance(error, dist.DistError) or "gloo" in str(error)
