"""A Llama written for training speed on a CPU, and its export to the Hugging Face layout."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from .tokenizer import BOS, END, MAX_LENGTH, PAD, SPECIAL, VOCAB_SIZE
from .wiring import Wiring, start

HIDDEN, LAYERS, HEADS, KV_HEADS, INNER, EPS, THETA = 256, 6, 4, 2, 512, 1e-5, 10_000.0
HEAD_DIM = HIDDEN // HEADS


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, (HIDDEN,), weight, EPS)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


class Layer(nn.Module):  # type: ignore[misc]  # torch is Any to our mypy
    """Attention is plain matrix products: at these lengths a CPU does them faster than fused."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.k = nn.Linear(HIDDEN, KV_HEADS * HEAD_DIM, bias=False)
        self.v = nn.Linear(HIDDEN, KV_HEADS * HEAD_DIM, bias=False)
        self.o = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.gate = nn.Linear(HIDDEN, INNER, bias=False)
        self.up = nn.Linear(HIDDEN, INNER, bias=False)
        self.down = nn.Linear(INNER, HIDDEN, bias=False)
        self.norm1 = nn.Parameter(torch.ones(HIDDEN))
        self.norm2 = nn.Parameter(torch.ones(HIDDEN))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        rows, length, _ = x.shape
        h = rms(x, self.norm1)
        q = rotate(self.q(h).view(rows, length, HEADS, HEAD_DIM).transpose(1, 2), cos, sin)
        k = rotate(self.k(h).view(rows, length, KV_HEADS, HEAD_DIM).transpose(1, 2), cos, sin)
        v = self.v(h).view(rows, length, KV_HEADS, HEAD_DIM).transpose(1, 2)
        k = k.repeat_interleave(HEADS // KV_HEADS, 1)
        v = v.repeat_interleave(HEADS // KV_HEADS, 1)
        weights = ((q @ k.transpose(-1, -2)) * HEAD_DIM**-0.5 + mask).softmax(-1)
        x = x + self.o((weights @ v).transpose(1, 2).reshape(rows, length, HIDDEN))
        h = rms(x, self.norm2)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class TinyLlama(nn.Module):  # type: ignore[misc]
    """Returns the last hidden states; the head is the transposed embedding."""

    def __init__(self, twins: list[tuple[int, int]]) -> None:
        """`twins`: ids of (token, the same with a space before it), which begin alike."""
        super().__init__()
        self.embed = nn.Embedding(VOCAB_SIZE, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.Parameter(torch.ones(HIDDEN))
        angles = torch.arange(MAX_LENGTH)[:, None] * THETA ** (
            -torch.arange(0, HEAD_DIM, 2) / HEAD_DIM
        )
        angles = torch.cat((angles, angles), -1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        start(self, Wiring(HIDDEN, HEADS, KV_HEADS, HEAD_DIM, THETA), twins)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        length = ids.shape[1]
        x = self.embed(ids)
        cos, sin = self.cos[:length].to(x.dtype), self.sin[:length].to(x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        return rms(x, self.norm)


NAMES = {
    "q": "self_attn.q_proj.weight", "k": "self_attn.k_proj.weight", "v": "self_attn.v_proj.weight",
    "o": "self_attn.o_proj.weight", "gate": "mlp.gate_proj.weight", "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}  # fmt: skip


def to_hugging_face(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """`weights`: parameters of TinyLlama by name; returned in bf16 under the names of Llama."""
    out = {
        "model.embed_tokens.weight": weights["embed.weight"],
        "model.norm.weight": weights["norm"],
    }
    for i in range(LAYERS):
        for ours, theirs in NAMES.items():
            out[f"model.layers.{i}.{theirs}"] = weights[f"layers.{i}.{ours}.weight"]
        out[f"model.layers.{i}.input_layernorm.weight"] = weights[f"layers.{i}.norm1"]
        out[f"model.layers.{i}.post_attention_layernorm.weight"] = weights[f"layers.{i}.norm2"]
    return {k: v.detach().to(torch.bfloat16).contiguous() for k, v in out.items()}


def save_network(weights: dict[str, Tensor], folder: Path) -> None:
    ids = {token: i for i, token in enumerate(SPECIAL)}
    tokens = {"bos_token_id": ids[BOS], "eos_token_id": ids[END], "pad_token_id": ids[PAD]}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": MAX_LENGTH,
        "rms_norm_eps": EPS,
        "rope_theta": THETA,
        "rope_parameters": {"rope_type": "default", "rope_theta": THETA},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "dtype": "bfloat16",
        "use_cache": True,
        **tokens,
    }
    generation = {**tokens, "do_sample": False, "max_new_tokens": 128}
    path = folder / "model.safetensors"
    save_file(to_hugging_face(weights), path, metadata={"format": "pt"})
    path.chmod(0o644)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
