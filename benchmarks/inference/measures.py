"""What is measured, in the order in which it is told."""

import statistics
import time
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import torch

from benchmarks.inference.contenders import (
    VLLM,
    Contender,
    Elsewhere,
    Http,
    Ours,
    Peft,
    Transformers,
    Work,
    our_server,
    vllm,
)
from benchmarks.inference.figures import Figure
from benchmarks.inference.llama_server import LLAMA_SERVER, llama_server
from benchmarks.inference.world import ADAPTERS, World, prompts
from benchmarks.llama import NAME
from engine.infer.lora_folder import load_lora
from engine.infer.model import load_model

TOKENS, PROMPT = 64, 16
REGISTERED = 1000
BURST, BURST_ADAPTERS, BURST_TOKENS = 200, 50, 16
BURST_TOLD = f"first token, p95 of a burst of {BURST} for {BURST_ADAPTERS} adapters"


def engines(world: World, dtype: str, device: str, threads: int, rounds: int) -> Iterator[Figure]:
    """Without HTTP, each in a process of its own."""
    given = (world, getattr(torch, dtype), device, threads)
    ours, plain, peft = (Elsewhere(each, *given) for each in (Ours, Transformers, Peft))
    asked = prompts(ADAPTERS, PROMPT)
    work = Work(asked, TOKENS, range(ADAPTERS))
    # Of the slowest, fewer tokens tell as much: each takes as long as the one before.
    short = Work(asked, TOKENS // 4, range(ADAPTERS))
    mine = ours.way("with_adapters")
    mine(work)
    speed = f"{ADAPTERS * TOKENS / timed(lambda: mine(work)):.0f} tokens/s"
    pairs: list[tuple[str, float, Contender, Work, int]] = [
        ("own engine without adapters", 0.85, ours.way("base_only"), work, rounds),
        ("transformers static batch, no adapters", 1.0, plain.way("static_batch"), work, rounds),
        ("peft mixed batch", 6.0, peft.way("mixed_batch"), work, 2),
        ("peft one adapter after another", 8.0, peft.way("one_after_another"), short, 2),
    ]
    for what, bar, theirs, which, times in pairs:
        yield Figure(what, dtype, ratio(times, theirs, mine, which), "x", bar, detail=speed)
    choices = {
        "identical": [0] * ADAPTERS,
        "uniform": [number % 6 for number in range(ADAPTERS)],
        "skewed": skewed(ADAPTERS, ADAPTERS),
    }
    for name, chosen in choices.items():
        other = Work(asked, TOKENS, chosen)
        found = [timed(lambda: mine(work)) / timed(lambda: mine(other)) for _ in range(rounds)]  # noqa: B023
        what = f"popularity {name}, over all distinct"
        yield Figure(what, dtype, statistics.median(found), "x")
    for each in (ours, plain, peft):
        each.close()


def swap(world: World, dtype: str, device: str, threads: int, rounds: int) -> Iterator[Figure]:
    """From an adapter's files to memory."""
    torch.set_num_threads(1)  # as the threads have that load beside the engine's
    model = load_model(NAME, world.base, torch.device(device), dtype=getattr(torch, dtype))
    kept, took = [], []
    for number in range(3 * ADAPTERS):
        begun = time.perf_counter()
        kept.append(load_lora(world.adapter(number), model.layers, model.device))
        took.append(1000 * (time.perf_counter() - begun))
    torch.set_num_threads(threads)
    first, last = statistics.median(took[:ADAPTERS]), statistics.median(took[-ADAPTERS:])
    yield Figure("swap-in from disk, median", dtype, statistics.median(took), "ms", 10, below=True)
    yield Figure("swap-in with 64 resident, over none", dtype, last / first, "x", 1.25, below=True)


def servers(world: World, dtype: str, device: str, threads: int, rounds: int) -> Iterator[Figure]:
    """Over HTTP, each server in a process of its own; vLLM where `make env-vllm` was run."""
    work = Work(prompts(ADAPTERS, PROMPT), TOKENS, range(ADAPTERS))
    options = {"max_running": ADAPTERS, "max_resident": ADAPTERS, "max_waiting": BURST}
    with our_server(str(world.root), dtype, device, threads, **options) as ours:
        yield from _registered(ours, dtype, work, rounds)
        if LLAMA_SERVER.exists() and device == "cpu":
            with llama_server(world, dtype, threads) as theirs:
                found = ratio(rounds, theirs.base_only, ours.base_only, work)
                yield Figure("llama-server, no adapters", dtype, found, "x")
        if not VLLM.exists():
            yield Figure(BURST_TOLD, dtype, _burst(ours), "ms")
            return
        with vllm(world, dtype, BURST_ADAPTERS) as theirs:
            found = ratio(rounds, theirs.with_adapters, ours.with_adapters, work)
            yield Figure("vLLM, 32 adapters", dtype, found, "x", 1.5)
            found = ratio(rounds, theirs.base_only, ours.base_only, work)
            yield Figure("vLLM, no adapters", dtype, found, "x", 1.0)
            mine, others = _burst(ours), _burst(theirs)
            yield Figure(BURST_TOLD, dtype, mine, "ms", detail=f"vLLM {others:.0f} ms")


def _registered(ours: Http, dtype: str, work: Work, rounds: int) -> Iterator[Figure]:
    """A thousand adapters that were all here once, and any of them asked for."""
    once = prompts(ADAPTERS, PROMPT)
    for first in range(0, REGISTERED, ADAPTERS):
        ours.with_adapters(Work(once, 1, range(first, first + ADAPTERS)))
    random, found = Random(1), []
    for _ in range(rounds):
        chosen = random.sample(range(REGISTERED), ADAPTERS)
        many = Work(work.prompts, TOKENS, chosen)
        ours.with_adapters(work)  # the 32 are resident again
        few = timed(lambda: ours.with_adapters(work))
        found.append(few / timed(lambda: ours.with_adapters(many)))  # noqa: B023
    what = f"{REGISTERED} registered, {ADAPTERS} resident, over {ADAPTERS} registered"
    yield Figure(what, dtype, statistics.median(found), "x", 0.9)


def _burst(server: Http) -> float:
    """Milliseconds until 95 of 100 have their first token."""
    chosen = [number % BURST_ADAPTERS for number in range(BURST)]
    work = Work(prompts(BURST, PROMPT, seed=2), BURST_TOKENS, chosen)
    return 1000 * statistics.quantiles(server.first_tokens(work), n=20)[-1]


Measure = Callable[[World, str, str, int, int], Iterator[Figure]]
MEASURES: dict[str, Measure] = {"engines": engines, "swap": swap, "servers": servers}


def timed(run: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def ratio(rounds: int, theirs: Contender, ours: Contender, work: Work) -> float:
    """How many times as fast ours is: the median over the rounds, after one to warm up."""
    ours(work)
    found = [timed(lambda: theirs(work)) / timed(lambda: ours(work)) for _ in range(rounds)]
    return statistics.median(found)


def skewed(requests: int, adapters: int) -> list[int]:
    """Zipf of 1.5, as Punica (https://arxiv.org/abs/2310.18547) has it."""
    weights = [1 / (rank + 1) ** 1.5 for rank in range(adapters)]
    return Random(3).choices(range(adapters), weights, k=requests)
