"""Who does the work: Luthier's engine, peft and transformers, vLLM. Each in its own way of use."""

import asyncio
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from queue import SimpleQueue
from typing import Any

import httpx
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, GenerationConfig

from benchmarks.inference.world import ADAPTERS, CONTEXT, RANK, World
from benchmarks.llama import NAME
from cli.family import listen, port_of
from engine.infer.batching import kv_tokens, shapes_for_rows
from engine.infer.generator import Failed, Output, SequenceRequest
from engine.infer.lora import LoraWeights
from engine.infer.lora_folder import load_lora
from engine.infer.metrics import Metrics
from engine.infer.model import load_model
from engine.infer.scheduler import Scheduler
from engine.infer.threads import work_alone
from jobs.settings import REPO

VLLM = REPO / ".venv-vllm" / "bin" / "python"
VLLM_START_S = 600


@dataclass(frozen=True)
class Work:
    """Prompts, and how many tokens to say after each; request i is for adapter chosen[i]."""

    prompts: list[list[int]]
    tokens: int
    chosen: Sequence[int]


Contender = Callable[[Work], None]


class Elsewhere:
    """One who does the work in a process of its own: threads of one must not count as another's."""

    def __init__(self, make: Callable[..., Any], *given: Any) -> None:
        spawn = get_context("spawn")
        self._process = ProcessPoolExecutor(1, spawn, _begin, (make, *given))

    def way(self, name: str) -> Contender:
        """A method of theirs."""
        return lambda work: self._process.submit(_do, name, work).result()

    def close(self) -> None:
        self._process.shutdown()


_here: dict[str, Any] = {}  # in a process of Elsewhere


def _begin(make: Callable[..., Any], *given: Any) -> None:
    _here["contender"] = make(*given)


def _do(name: str, work: Work) -> None:
    getattr(_here["contender"], name)(work)


class Ours:
    """Luthier's engine, without HTTP around it."""

    def __init__(self, world: World, dtype: torch.dtype, device: str, threads: int) -> None:
        work_alone()  # as the inference server loads
        where = torch.device(device)
        self._model = load_model(NAME, world.base, where, dtype=dtype)
        self._model.rows = shapes_for_rows(self._model)
        self._loras: list[LoraWeights] = [
            load_lora(world.adapter(n), self._model.layers, where) for n in range(ADAPTERS)
        ]
        self._scheduler = Scheduler(
            world.tokenizer(),
            Metrics(),
            threads=threads,
            max_running=ADAPTERS,
            prefill_chunk=512,
            kv_tokens=kv_tokens(self._model, 0),
        )
        self._scheduler.start()

    def with_adapters(self, work: Work) -> None:
        self._run(work, [self._loras[number % ADAPTERS] for number in work.chosen])

    def base_only(self, work: Work) -> None:
        self._run(work, [None] * len(work.prompts))

    def _run(self, work: Work, loras: Sequence[LoraWeights | None]) -> None:
        over: SimpleQueue[Failed | Output] = SimpleQueue()

        def sink(event: Any) -> None:
            if isinstance(event, Failed) or (isinstance(event, Output) and event.finish):
                over.put(event)

        for prompt, lora in zip(work.prompts, loras, strict=True):
            request = SequenceRequest(
                model=self._model, lora=lora, prompt_ids=tuple(prompt), max_tokens=work.tokens
            )
            self._scheduler.submit(request, sink)
        for _ in work.prompts:
            event = over.get()
            if isinstance(event, Failed):
                raise event.error


class Transformers:
    """The base in one static batch."""

    def __init__(self, world: World, dtype: torch.dtype, device: str, threads: int) -> None:
        torch.set_num_threads(threads)
        model = AutoModelForCausalLM.from_pretrained(world.base, dtype=dtype)
        self.model: Any = model.to(device).eval()
        self._device = device

    def static_batch(self, work: Work) -> None:
        self.generate(self.model, work.prompts, work.tokens)

    @torch.inference_mode()
    def generate(self, model: Any, prompts: list[list[int]], tokens: int, **more: Any) -> None:
        ids = torch.tensor(prompts, device=self._device)
        config = GenerationConfig(
            max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0
        )
        mask = torch.ones_like(ids)
        model.generate(input_ids=ids, attention_mask=mask, generation_config=config, **more)


class Peft:
    """peft's own two ways with several adapters on one base."""

    def __init__(self, world: World, dtype: torch.dtype, device: str, threads: int) -> None:
        self._transformers = Transformers(world, dtype, device, threads)
        base, first = self._transformers.model, str(world.adapter(0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = PeftModel.from_pretrained(base, first, adapter_name="ad_0")
            for number in range(1, ADAPTERS):
                model.load_adapter(str(world.adapter(number)), adapter_name=f"ad_{number}")
        self._model = model.to(device).eval()

    def mixed_batch(self, work: Work) -> None:
        names = [f"ad_{number % ADAPTERS}" for number in work.chosen]
        self._transformers.generate(self._model, work.prompts, work.tokens, adapter_names=names)

    def one_after_another(self, work: Work) -> None:
        for number, prompt in zip(work.chosen, work.prompts, strict=True):
            self._model.set_adapter(f"ad_{number % ADAPTERS}")
            self._transformers.generate(self._model, [prompt], work.tokens)


class Http:
    """A server of OpenAI's completions: all requests at once."""

    def __init__(self, url: str) -> None:
        self._url = url

    def with_adapters(self, work: Work) -> None:
        asyncio.run(self._all(work, [f"ad_{number}" for number in work.chosen]))

    def base_only(self, work: Work) -> None:
        asyncio.run(self._all(work, [NAME] * len(work.prompts)))

    def first_tokens(self, work: Work) -> list[float]:
        """Seconds from the start until each request's first token."""
        return asyncio.run(self._first(work))

    async def _all(self, work: Work, names: list[str]) -> None:
        async with self._client() as http:
            pairs = zip(names, work.prompts, strict=True)
            answers = await asyncio.gather(
                *(http.post("/v1/completions", json=_body(n, p, work.tokens)) for n, p in pairs)
            )
        for answer in answers:
            answer.raise_for_status()
            if answer.json()["usage"]["completion_tokens"] != work.tokens:
                raise RuntimeError("a server said less than it was asked for")

    async def _first(self, work: Work) -> list[float]:
        begun = time.perf_counter()

        async def one(number: int, prompt: list[int]) -> float:
            body = _body(f"ad_{number}", prompt, work.tokens) | {"stream": True}
            first = 0.0
            async with http.stream("POST", "/v1/completions", json=body) as answer:
                answer.raise_for_status()
                async for line in answer.aiter_lines():
                    if line.startswith("data: {"):
                        first = first or time.perf_counter() - begun
            return first

        async with self._client() as http:
            pairs = zip(work.chosen, work.prompts, strict=True)
            return list(await asyncio.gather(*(one(n, p) for n, p in pairs)))

    def _client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None)
        return httpx.AsyncClient(base_url=self._url, timeout=900, limits=limits, trust_env=False)


def _body(name: str, prompt: list[int], tokens: int) -> dict[str, Any]:
    body = {"model": name, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
    return body | {"ignore_eos": True}


@contextmanager
def vllm(world: World, dtype: str, registered: int) -> Iterator[Http]:
    """vLLM in its own environment, told of every adapter at its start."""
    port = free_port()
    modules = [f"ad_{number}={world.adapter(number)}" for number in range(registered)]
    command = [
        str(VLLM), "-m", "vllm.entrypoints.openai.api_server",
        "--host", "127.0.0.1", "--port", str(port), "--model", str(world.base),
        "--served-model-name", NAME, "--dtype", dtype, "--max-model-len", str(CONTEXT),
        "--enable-lora", "--max-loras", str(ADAPTERS), "--max-lora-rank", str(RANK),
        "--max-cpu-loras", str(max(registered, ADAPTERS)), "--max-num-seqs", str(ADAPTERS),
        "--lora-modules", *modules,
    ]  # fmt: skip
    told = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "2"}
    with started(command, port, quiet=True, VLLM_PLUGINS="", **told) as server:
        yield server


@contextmanager
def our_server(root: str, dtype: str, device: str, threads: int, **options: int) -> Iterator[Http]:
    """Luthier's inference server in a process of its own."""
    port = free_port()
    more = [f"{name}={value}" for name, value in options.items()]
    command = [
        sys.executable, "-m", "benchmarks.inference.server",
        root, dtype, device, str(threads), str(port), *more,
    ]  # fmt: skip
    with started(command, port) as server:
        yield server


def free_port() -> int:
    probe = listen("127.0.0.1", 0, "--port")
    port = port_of(probe)
    probe.close()
    return port


@contextmanager
def started(command: list[str], port: int, quiet: bool = False, **told: str) -> Iterator[Http]:
    """A server on that port of loopback; `told` goes into its environment."""
    environment = {**os.environ, **told}  # noqa: TID251  # of a child
    out = subprocess.DEVNULL if quiet else None
    with subprocess.Popen(command, env=environment, stdout=out, stderr=out) as process:
        try:
            _wait(f"http://127.0.0.1:{port}/health", process)
            yield Http(f"http://127.0.0.1:{port}")
        finally:
            process.terminate()


def _wait(url: str, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + VLLM_START_S
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(url, timeout=2, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.3)
    raise RuntimeError(f"the server behind {url} did not start")
