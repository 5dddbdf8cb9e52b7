"""A folder as PEFT saves it: one configuration and one file of weights."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from engine.infer.errors import AdapterRefused
from engine.infer.weights_file import Index, read_numbers

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"


def read_config(folder: Path, peft_type: str, *, unsupported: Iterable[str] = ()) -> dict[str, Any]:
    """The configuration of an adapter of this type, none of the options set. AdapterRefused."""
    try:
        config = json.loads((folder / CONFIG_NAME).read_bytes())
    except (OSError, ValueError) as error:
        raise refused(f"{CONFIG_NAME} cannot be read") from error
    if not isinstance(config, dict) or config.get("peft_type") != peft_type:
        raise refused(f"{CONFIG_NAME} is not that of a {peft_type} adapter")
    odd = [option for option in unsupported if config.get(option)]
    if config.get("bias", "none") != "none":
        odd.append("bias")
    if odd:
        raise refused(f"this server does not serve {peft_type} with {', '.join(odd)}")
    return config


def read_weights(folder: Path) -> tuple[Index, torch.Tensor]:
    """Which tensors there are, and the numbers of them all, on the CPU. AdapterRefused."""
    try:
        return read_numbers(folder / WEIGHTS_NAME)
    except (OSError, SafetensorError) as error:
        raise refused(f"{WEIGHTS_NAME} cannot be read: {error}") from error


def refused(why: str) -> AdapterRefused:
    return AdapterRefused(
        "adapter_invalid", f"The adapter cannot be served: {why}. Export it again with PEFT."
    )
