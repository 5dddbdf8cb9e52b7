"""A base model by its sizes: which matrices it has, and how large each of them is."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.estimate.errors import EstimateImpossible

Shape = tuple[int, ...]

# Families whose tensors follow from their config.json; the others' are read from their files.
_PLAIN = frozenset({"llama", "mistral", "qwen2", "qwen3"})
_EMBEDDINGS = frozenset({"embed_tokens", "embed_in", "wte", "wpe"})
_HEADS = frozenset({"lm_head", "embed_out", "score"})
_NOT_TRAINED = (".inv_freq", ".attn.bias", ".masked_bias")  # buffers that some files carry


@dataclass(frozen=True)
class BaseShape:
    """Sizes of a decoder. `tensors` are its parameters by name, each once, with their shapes.

    `assumed` is true where they were told by config.json, because the weights are elsewhere.
    """

    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tensors: Mapping[str, Shape]
    assumed: bool = False

    @property
    def parameters(self) -> int:
        return sum(map(math.prod, self.tensors.values()))

    @property
    def head_parameters(self) -> int:
        """Of an output head of its own; 0 where it is the input embedding."""
        own = (shape for name, shape in self.tensors.items() if _last_of(name) in _HEADS)
        return sum(map(math.prod, own))

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """The layers that LoRA can be put on, by the name of their module, as [out, in]."""
        return {
            name.removesuffix(".weight"): (shape[0], shape[1])
            for name, shape in self.tensors.items()
            if len(shape) == 2
            and name.endswith(".weight")
            and _last_of(name) not in _EMBEDDINGS | _HEADS
        }

    @property
    def linear_parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.linear.values())


def base_shape(config: Mapping[str, Any], tensors: Mapping[str, Shape] | None) -> BaseShape:
    """From the content of config.json and the shapes in the weights' headers, where they are here.

    Raises EstimateImpossible where the sizes are in neither.
    """
    text = config.get("text_config") or config
    try:
        hidden = int(_first(text, "hidden_size", "n_embd", "d_model"))
        heads = int(_first(text, "num_attention_heads", "n_head", "num_heads"))
        sizes: dict[str, Any] = {
            "hidden_size": hidden,
            "layers": int(_first(text, "num_hidden_layers", "n_layer", "num_layers")),
            "heads": heads,
            "kv_heads": int(text.get("num_key_value_heads") or heads),
            "head_dim": int(text.get("head_dim") or hidden // heads),
            "intermediate_size": int(
                text.get("intermediate_size") or text.get("n_inner") or 4 * hidden
            ),
            "vocab_size": int(_first(text, "vocab_size")),
        }
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise EstimateImpossible(
            "base_model_sizes_unknown",
            f"The base model's config.json does not say its sizes ({error}), so nothing can be "
            "said of memory and time; choose another base.",
            param="base_model",
        ) from error
    tied = bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False)))
    if tensors is not None:
        return BaseShape(**sizes, tensors=_parameters(tensors, tied))
    told = _told(str(text.get("model_type")), sizes, text)
    return BaseShape(**sizes, tensors=_parameters(told, tied), assumed=True)


def _parameters(tensors: Mapping[str, Shape], tied: bool) -> dict[str, Shape]:
    """Without buffers, and without a second copy of what is tied."""
    return {
        name: shape
        for name, shape in tensors.items()
        if not name.endswith(_NOT_TRAINED) and not (tied and _last_of(name) in _HEADS)
    }


def _told(family: str, sizes: Mapping[str, int], config: Mapping[str, Any]) -> dict[str, Shape]:
    """The tensors of a plain decoder, from its sizes."""
    if family not in _PLAIN:
        raise EstimateImpossible(
            "base_model_weights_elsewhere",
            f"The weights of the base model are not on this machine, and what a {family!r} has is "
            "not told by its config.json; ask the operator to put its weights here.",
            param="base_model",
        )
    hidden, inner = sizes["hidden_size"], sizes["intermediate_size"]
    queries, keys = sizes["heads"] * sizes["head_dim"], sizes["kv_heads"] * sizes["head_dim"]
    projections = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
    layer: dict[str, Shape] = {
        f"self_attn.{name}.weight": (out, hidden) for name, out in projections.items()
    }
    if family == "qwen2" or config.get("attention_bias"):
        layer |= {f"self_attn.{name}.bias": (out,) for name, out in projections.items()}
    if family == "qwen3":
        layer |= dict.fromkeys(
            ("self_attn.q_norm.weight", "self_attn.k_norm.weight"), (sizes["head_dim"],)
        )
    layer["self_attn.o_proj.weight"] = (hidden, queries)
    layer |= dict.fromkeys(("mlp.gate_proj.weight", "mlp.up_proj.weight"), (inner, hidden))
    layer["mlp.down_proj.weight"] = (hidden, inner)
    layer |= dict.fromkeys(("input_layernorm.weight", "post_attention_layernorm.weight"), (hidden,))
    table = (sizes["vocab_size"], hidden)
    outer: dict[str, Shape] = {
        "model.embed_tokens.weight": table,
        "model.norm.weight": (hidden,),
        "lm_head.weight": table,
    }
    inside = {
        f"model.layers.{i}.{name}": shape
        for i in range(sizes["layers"])
        for name, shape in layer.items()
    }
    return outer | inside


def _last_of(name: str) -> str:
    return name.removesuffix(".weight").rpartition(".")[2]


def _first(config: Mapping[str, Any], *names: str) -> Any:
    for name in names:
        if config.get(name) is not None:
            return config[name]
    raise KeyError(names[0])
