"""Prompt and prefix tuning from outside: one matrix, a row for each virtual token."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from adapters.errors import AdapterInvalid
from adapters.files import TEXT_FILES, WEIGHTS_NAME, check_files
from adapters.geometry import Attention, Geometry
from adapters.peft_config import CONFIG_NAME, check_task, load_config, malformed, whole
from adapters.tensors import check_finite, read_header

MAX_VIRTUAL_TOKENS = 1024  # as engine.spec has it for jobs
KEY = "prompt_embeddings"
_MAX_HEADER_BYTES = 1 << 16


class VirtualTokensSummary(BaseModel):
    """What a folder of prompt or prefix tuning comes to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_virtual_tokens: int
    parameters: int


def validate_prompt(folder: Path, base: Geometry) -> VirtualTokensSummary:
    """Check prompt tuning: embeddings [count, hidden_size]. AdapterInvalid."""
    config = _config(folder)
    _expect(config, token_dim=base.hidden_size)
    return _weights(folder, config, base, base.hidden_size)


def validate_prefix(folder: Path, base: Geometry) -> VirtualTokensSummary:
    """Check prefix tuning: keys and values [count, layers * 2 * heads * head_dim].

    AdapterInvalid; prefix_unsupported_by_base where the base's layers are not all alike.
    """
    attention = _even(base)
    width = attention.heads * attention.head_dim
    config = _config(folder)
    _expect(
        config,
        token_dim=width,
        num_attention_heads=attention.heads,
        num_layers=attention.layers,
    )
    return _weights(folder, config, base, attention.layers * 2 * width)


def _even(base: Geometry) -> Attention:
    if base.attention is None:
        text = "the layers of this base differ in their keys and values: no prefix fits them all"
        raise AdapterInvalid("prefix_unsupported_by_base", text)
    return base.attention


def _config(folder: Path) -> Mapping[str, Any]:
    check_files(folder, TEXT_FILES | {CONFIG_NAME, WEIGHTS_NAME})
    config = load_config(folder)
    check_task(config)
    if config.get("modules_to_save"):
        text = "the adapter has `modules_to_save`, which this server does not serve"
        raise AdapterInvalid("modules_to_save_unsupported", text)
    if config.get("num_transformer_submodules") not in (None, 1):
        raise malformed("num_transformer_submodules is not 1, as a decoder has it")
    return config


def _expect(config: Mapping[str, Any], **sizes: int) -> None:
    """Sizes that the configuration names must be the base's: PEFT makes its model of them."""
    for name, size in sizes.items():
        if config.get(name) is not None and whole(config, name) != size:
            text = f"{name} is {config[name]}, this base's {size}: the adapter is of another base"
            raise AdapterInvalid("wrong_base", text)


def _weights(
    folder: Path, config: Mapping[str, Any], base: Geometry, width: int
) -> VirtualTokensSummary:
    count = whole(config, "num_virtual_tokens")
    most = min(MAX_VIRTUAL_TOKENS, base.context_length - 1)
    if count > most:
        text = f"{count} virtual tokens are above this base's limit {most}; train with fewer"
        raise AdapterInvalid("too_many_virtual_tokens", text)
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        raise AdapterInvalid("weights_missing", f"there is no {WEIGHTS_NAME}")
    header = read_header(path, max_header_bytes=_MAX_HEADER_BYTES)
    odd = sorted(header.keys() - {KEY})
    if odd:
        text = f"{odd[0][:100]!r} is no weight of virtual tokens; only {KEY} is"
        raise AdapterInvalid("odd_tensor_name", text)
    if KEY not in header:
        raise AdapterInvalid("weights_missing", f"{WEIGHTS_NAME} has no tensors")
    shape = header[KEY].shape
    if shape != (count, width):
        text = f"{KEY} is {list(shape)}; {count} virtual tokens of this base are {[count, width]}"
        raise AdapterInvalid("wrong_shape", text)
    check_finite(path, header)
    return VirtualTokensSummary(num_virtual_tokens=count, parameters=count * width)
