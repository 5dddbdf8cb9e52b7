"""The sizes of a base model that virtual tokens must fit, from its config.json alone."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from adapters.errors import AdapterError

_DEFAULT_CONTEXT = 2048  # of models that name no limit, as when they are served
# Each says that layers differ in their keys and values: no prefix fits all of them.
_UNEVEN = ("per_layer_config", "global_head_dim", "num_kv_shared_layers", "kv_lora_rank")


class Attention(NamedTuple):
    """Layers, heads with keys and values of their own, and the width of a head."""

    layers: int
    heads: int
    head_dim: int


class Geometry(NamedTuple):
    """hidden_size: numbers of an embedding. attention: None where a prefix does not fit."""

    hidden_size: int
    attention: Attention | None
    context_length: int


def base_geometry(model_dir: Path) -> Geometry:
    """Read a base model's folder. AdapterError where config.json does not say."""
    try:
        config = json.loads((model_dir / "config.json").read_bytes())
        return geometry_of(config)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise AdapterError(
            f"the sizes of base model {model_dir.name!r} are not in its config.json ({error!r}); "
            "virtual tokens cannot be checked against it"
        ) from error


def geometry_of(config: dict[str, Any]) -> Geometry:
    """The same, from the content of config.json; an error of Python's own where it is not there."""
    text = config.get("text_config") or config
    hidden_size = int(_first(text, "hidden_size", "n_embd", "d_model"))
    context = _maybe(text, "max_position_embeddings", "n_positions") or _DEFAULT_CONTEXT
    if any(text.get(name) for name in _UNEVEN):
        return Geometry(hidden_size, None, int(context))
    heads = int(_first(text, "num_attention_heads", "n_head", "num_heads"))
    attention = Attention(
        int(_first(text, "num_hidden_layers", "n_layer", "num_layers")),
        int(text.get("num_key_value_heads") or heads),
        int(text.get("head_dim") or hidden_size // heads),
    )
    return Geometry(hidden_size, attention, int(context))


def _first(config: dict[str, Any], *names: str) -> Any:
    value = _maybe(config, *names)
    if value is None:
        raise KeyError(names[0])
    return value


def _maybe(config: dict[str, Any], *names: str) -> Any:
    return next((config[name] for name in names if config.get(name) is not None), None)
