"""A folder as PEFT saves it: one configuration and one file of weights."""

import json
import mmap
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from engine.infer.errors import AdapterRefused

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
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


def read_tensors(folder: Path) -> list[tuple[str, torch.Tensor]]:
    """Every tensor by name, on the CPU. AdapterRefused."""
    path = folder / WEIGHTS_NAME
    try:
        with safe_open(path, "pt") as file:
            names = file.offset_keys()
            slices = [file.get_slice(name) for name in names]
            kinds = {each.get_dtype() for each in slices}
            shapes = [each.get_shape() for each in slices]
            sizes = [prod(shape) for shape in shapes]
            if len(kinds) != 1 or not kinds <= _DTYPES.keys() or not any(sizes):
                return [(name, file.get_tensor(name)) for name in names]
        whole = _read_numbers(path, _DTYPES[kinds.pop()])
    except (OSError, SafetensorError) as error:
        raise refused(f"{path.name} cannot be read: {error}") from error
    parts = whole.split(sizes)
    return [(name, part.view(s)) for name, part, s in zip(names, parts, shapes, strict=True)]


def _read_numbers(path: Path, dtype: torch.dtype) -> torch.Tensor:
    """All that follows the header, which the library has found right: numbers without a gap.

    Where they lie in the system's cache, and not copied: who keeps them copies them. Hundreds of
    small tensors take the library several times as long.
    """
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return torch.frombuffer(pages, dtype=dtype, offset=8 + header)


def refused(why: str) -> AdapterRefused:
    return AdapterRefused(
        "adapter_invalid", f"The adapter cannot be served: {why}. Export it again with PEFT."
    )
