"""Tiny random models with a tokenizer, adapters that peft made for them, and a server of them."""

import json
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch
import transformers
import uvicorn
from peft import (
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GenerationConfig

from engine.infer.errors import AdapterNotFound
from engine.infer.probes import compute_logprobs
from engine.infer.routes import Engine
from engine.infer.server import create_app

BASE_NAME = "tiny"
END = "<|end|>"
CONTEXT = 8192  # of the base that most tests share: long enough to be cancelled on the way
SENTENCES = [
    "The quick brown fox jumps over the lazy dog by the river bank.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "いろはにほへと ちりぬるを — 我能吞下玻璃而不伤身体。",
    "Emoji 🦊🐢🚀 take four bytes each; café and naïve take two.",
    "Numbers 1 2 3 4 5 6 7 8 9 10, lists, and answers: yes, no, maybe.",
]
_SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "vocab_size": 512}
_LLAMA_LIKE = {
    **_SMALL,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**_LLAMA_LIKE),
    "qwen2": lambda: transformers.Qwen2Config(**_LLAMA_LIKE),
    "qwen3": lambda: transformers.Qwen3Config(**_LLAMA_LIKE, head_dim=12),
    "mistral": lambda: transformers.MistralConfig(**_LLAMA_LIKE, head_dim=12, sliding_window=16),
    "gemma2": lambda: transformers.Gemma2Config(
        **_LLAMA_LIKE, head_dim=12, sliding_window=16, tie_word_embeddings=False
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **_LLAMA_LIKE,
        head_dim=12,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
        tie_word_embeddings=False,
    ),
    "phi": lambda: transformers.PhiConfig(**_LLAMA_LIKE),
    "phi3": lambda: transformers.Phi3Config(**_LLAMA_LIKE, pad_token_id=0),
    "gpt2": lambda: transformers.GPT2Config(
        n_embd=48, n_layer=2, n_head=4, n_positions=256, vocab_size=512
    ),
    "neox": lambda: transformers.GPTNeoXConfig(
        **_SMALL, intermediate_size=96, num_attention_heads=4, max_position_embeddings=256
    ),
}
# Of which a batch cannot be made.
UNLIKE: dict[str, Callable[[], Any]] = {
    "bloom": lambda: transformers.BloomConfig(hidden_size=48, n_layer=2, n_head=4, vocab_size=512),
    # It counts positions from the end of the longest row.
    "gpt-neo": lambda: transformers.GPTNeoConfig(
        hidden_size=48,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        vocab_size=512,
    ),
    # A long row would change the rotations of all.
    "longrope": lambda: transformers.Phi3Config(
        **_LLAMA_LIKE,
        pad_token_id=0,
        original_max_position_embeddings=128,
        rope_scaling={"type": "longrope", "short_factor": [1.0] * 6, "long_factor": [4.0] * 6},
    ),
}
TARGETS = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
}


_VIRTUAL = {"prompt_tuning": PromptTuningConfig, "prefix_tuning": PrefixTuningConfig}


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE of at most 512 tokens; its last one ends a turn."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|pad|>", END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))


def write_base(
    folder: Path, architecture: str = "llama", *, seed: int = 0, context: int = 256
) -> Path:
    """A random model with logits far enough apart that rounding chooses no token."""
    torch.manual_seed(seed)
    config = (ARCHITECTURES | UNLIKE)[architecture]()
    config.max_position_embeddings = context
    config.initializer_range = 0.15
    config.bos_token_id = config.eos_token_id = 1
    config.pad_token_id = 0
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # biases and norms start as 0 and 1, where mistakes would not show
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@contextmanager
def quiet_peft() -> Iterator[None]:
    """peft 0.21 reads a property that transformers 5.23 has renamed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is", FutureWarning)
        yield


@quiet_peft()
def load(base: Path, adapter: Path | None = None) -> Any:
    """The reference: transformers, and peft where there is an adapter."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    return PeftModel.from_pretrained(model, str(adapter)).eval() if adapter else model


def greedy(model: Any, prompt_ids: list[int], tokens: int) -> list[int]:
    """What transformers' generate makes of one prompt on its own."""
    if getattr(model, "prompt_encoder", None) is not None:
        return _greedy_by_forward(model, prompt_ids, tokens)
    config = GenerationConfig(
        max_new_tokens=tokens, do_sample=False, eos_token_id=1, pad_token_id=0
    )
    ids = torch.tensor([prompt_ids])
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config
    )
    return out[0, len(prompt_ids) :].tolist()


def _greedy_by_forward(model: Any, prompt_ids: list[int], tokens: int) -> list[int]:
    """The same without a cache, by the forward that training uses."""
    ids = list(prompt_ids)
    with torch.no_grad():
        while len(ids) < len(prompt_ids) + tokens and (ids == prompt_ids or ids[-1] != 1):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt_ids) :]


@dataclass
class World:
    """A base and its adapters on disk; `fetch` is what the server is given."""

    root: Path
    base: Path
    architecture: str = "llama"
    fetched: list[str] = field(default_factory=list)

    @property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.base / "tokenizer.json"))

    def fetch(self, adapter_id: str) -> Path:
        self.fetched.append(adapter_id)
        folder = self.root / adapter_id
        if not folder.is_dir():
            raise AdapterNotFound(adapter_id)
        return folder

    def ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text).ids
        return ids

    def add_lora(self, name: str, *, seed: int = 1, probes: bool = True, **options: Any) -> Path:
        """A LoRA adapter with random A and B, as peft saves it."""
        torch.manual_seed(seed)
        settings = {"r": 8, "lora_alpha": 16, "init_lora_weights": False, **options}
        settings.setdefault("target_modules", TARGETS.get(self.architecture, "all-linear"))
        settings.setdefault("fan_in_fan_out", self.architecture == "gpt2")
        with quiet_peft():
            model = get_peft_model(load(self.base), LoraConfig(task_type="CAUSAL_LM", **settings))
        with torch.no_grad():  # DoRA's begin where they change nothing
            for parameter_name, parameter in model.named_parameters():
                if "magnitude" in parameter_name:
                    parameter.mul_(torch.rand_like(parameter) + 0.5)
        model.save_pretrained(self.root / name, save_embedding_layers=False)
        return self.describe(name, "lora", model if probes else None)

    def add_virtual_tokens(
        self, name: str, kind: str, *, count: int = 5, seed: int = 1, probes: bool = True
    ) -> Path:
        """Prompt or prefix tuning with random numbers, as peft saves it."""
        torch.manual_seed(seed)
        config = _VIRTUAL[kind](task_type="CAUSAL_LM", num_virtual_tokens=count)
        with quiet_peft():
            model = get_peft_model(load(self.base), config)
            model.save_pretrained(self.root / name)
        return self.describe(name, kind, model if probes else None)

    def add_full(self, name: str, *, seed: int = 1) -> Path:
        """A whole model of the base's shape."""
        folder = self.root / name
        write_base(folder, self.architecture, seed=seed, context=CONTEXT)
        (folder / "tokenizer.json").unlink()
        return self.describe(name, "full", load(folder))

    def describe(self, name: str, kind: str, model: Any, **changes: Any) -> Path:
        """Write the manifest, with what the model itself answers to the probes."""
        probes = []
        for text in SENTENCES[:2] if model is not None else []:
            ids = self.ids(text)
            scores = compute_logprobs(model, ids, 4)
            probes.append({"token_ids": ids, "prompt_tokens": 4, "logprobs": scores})
        manifest = {
            "kind": kind,
            "contract": {"stop_token_ids": [1], "chat_template": "unused"},
            "probes": probes,
            "adapter_id": name,
            **changes,
        }
        (self.root / name / "manifest.json").write_text(json.dumps(manifest))
        return self.root / name


@contextmanager
def serve(world: World, **options: Any) -> Iterator[httpx.Client]:
    """A client of the app behind a real uvicorn on loopback."""
    app = create_app(
        base_name=BASE_NAME,
        base_path=world.base,
        fetch=options.pop("fetch", world.fetch),
        threads=1,
        device="cpu",
        **options,
    )
    config = uvicorn.Config(app, port=0, log_config=None, log_level="error", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        thread.join(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    limits = httpx.Limits(max_connections=None)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, limits=limits) as client:
            client.app = app  # type: ignore[attr-defined]  # for tests that look inside
            yield client
    finally:
        server.should_exit = True
        thread.join()


def complete(client: httpx.Client, **body: Any) -> dict[str, Any]:
    """One completion that must succeed."""
    response = client.post("/v1/completions", json={"model": BASE_NAME, **body})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def stream(client: httpx.Client, **body: Any) -> list[dict[str, Any]]:
    """The chunks of one streamed completion."""
    chunks = []
    body = {"model": BASE_NAME, "stream": True, **body}
    with client.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == 200, response.read()
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    for line in lines[:-1]:
        assert line.startswith("data: ")
        chunks.append(json.loads(line.removeprefix("data: ")))
    return chunks


def until(condition: Callable[[], bool], *, within_s: float = 90) -> None:
    """Wait for something that another thread does."""
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def hang_up(
    client: httpx.Client, path: str, body: dict[str, Any], *, when: Callable[[], bool]
) -> None:
    """Ask, and close the connection without the answer as soon as `when` holds."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: luthier.test\r\nContent-Type: application/json\r\n"
    port = client.base_url.port
    with socket.create_connection((client.base_url.host, port)) as connection:
        connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        until(when)


def metric(client: httpx.Client, name: str) -> float:
    """A sample of /metrics by its name and labels."""
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.rsplit(" ", 1)[0] == name)


def engine_of(client: httpx.Client) -> Engine:
    """The running parts behind a client of `serve`."""
    engine: Engine = client.app.state.engine  # type: ignore[attr-defined]  # set by serve
    return engine


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The envelope's content."""
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"]
    return error
