"""Virtual tokens in front of a prompt: prompt and prefix tuning, on a base that is shared.

Nothing comes before them, so the attention state that they leave is the same for every sequence: it
is made once, and each sequence begins with a copy.
"""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from engine.infer.peft_folder import CONFIG_NAME, read_config, read_weights, refused

_KEY = "prompt_embeddings"  # peft's name for the weights of both kinds
_UNSUPPORTED = ("modules_to_save",)


class VirtualTokens:
    """`count` tokens, whose state `fill(model, cache)` puts into a new cache."""

    def __init__(self, count: int, fill: Callable[[Any, Any], None]) -> None:
        self.count, self._fill = count, fill
        self._state: Any = None

    def begin(self, model: Any, cache: Any) -> Any:
        """What a sequence begins with. Call it in the thread that runs the model; cache is new."""
        return copy.deepcopy(self._made(model, cache))

    def states(self, model: Any, cache: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The same by layer, keys and values [heads, n, width], to be copied.

        A layer that looks back over a window keeps the last of them alone, so n may be below count.
        """
        return [(layer.keys[0], layer.values[0]) for layer in self._made(model, cache).layers]

    def _made(self, model: Any, cache: Any) -> Any:
        if self._state is None:
            self._fill(model, cache)
            self._state = cache
        return self._state


def load_prompt(folder: Path, model: Any, *, context_length: int) -> VirtualTokens:
    """Prompt tuning (Lester et al. 2021): embeddings [count, hidden], read before the prompt's.

    Raises AdapterRefused where they do not fit this Transformers model.
    """
    config = read_config(folder, "PROMPT_TUNING", unsupported=_UNSUPPORTED)
    embeddings = _weights(folder, config, model, context_length)
    _check_width(embeddings, model.get_input_embeddings().weight.shape[1])

    def fill(model: Any, cache: Any) -> None:
        model.base_model(inputs_embeds=embeddings[None], past_key_values=cache, use_cache=True)

    return VirtualTokens(embeddings.shape[0], fill)


def load_prefix(folder: Path, model: Any, *, context_length: int) -> VirtualTokens:
    """Prefix tuning (Li & Liang 2021): each layer's keys and values themselves.

    The file's matrix is [count, layers * 2 * heads * head_dim]. Raises AdapterRefused.
    """
    config = read_config(folder, "PREFIX_TUNING", unsupported=_UNSUPPORTED)
    weights = _weights(folder, config, model, context_length)
    layers, heads, head_dim = _attention(model)
    _check_width(weights, layers * 2 * heads * head_dim)
    pairs = weights.view(-1, layers, 2, heads, head_dim).permute(1, 2, 3, 0, 4)[:, :, None]

    def fill(_: Any, cache: Any) -> None:
        for layer, (keys, values) in enumerate(pairs):  # each [1, heads, count, head_dim]
            cache.update(keys, values, layer)

    return VirtualTokens(weights.shape[0], fill)


def _weights(
    folder: Path, config: Mapping[str, Any], model: Any, context_length: int
) -> torch.Tensor:
    """The one matrix [count, numbers a token], in the model's dtype, as PEFT computes with it."""
    index, numbers = read_weights(folder)
    if index.places.keys() != {_KEY} or len(index.places[_KEY].shape) != 2:
        raise refused(f"its weights are not one matrix of the name {_KEY}")
    weights = index.places[_KEY].of(numbers).to(model.device, model.dtype)
    count = weights.shape[0]
    if config.get("num_virtual_tokens") != count:
        raise refused(f"it has {count} virtual tokens, and {CONFIG_NAME} says otherwise")
    if not 0 < count < context_length:
        raise refused(f"{count} virtual tokens leave no room in a context of {context_length}")
    if not weights.isfinite().all():
        raise refused("it has weights that are not finite")
    return weights


def _check_width(weights: torch.Tensor, expected: int) -> None:
    if weights.shape[1] != expected:
        raise refused(f"a virtual token has {weights.shape[1]} numbers; the base takes {expected}")


def _attention(model: Any) -> tuple[int, int, int]:
    """Layers, heads that have keys of their own, and the width of a head."""
    config = model.config.get_text_config(decoder=True)
    heads: int = config.num_attention_heads
    own: int = getattr(config, "num_key_value_heads", None) or heads
    head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // heads
    return config.num_hidden_layers, own, head_dim
