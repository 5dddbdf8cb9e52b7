"""Adapters made by hand, well or badly: safetensors from parts, tars from entries."""

import io
import json
import math
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adapters.archive import tar_stream

HIDDEN, KEY_VALUES, INNER, VOCABULARY, RANK = 8, 4, 12, 16, 2
Tensors = dict[str, tuple[str, list[int], bytes]]  # by name: dtype, shape, bytes

_LAYER = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KEY_VALUES, HIDDEN),
    "self_attn.v_proj": (KEY_VALUES, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
# A Llama of two layers, [out, in] as torch has it.
BASE: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
    "model.norm.weight": (HIDDEN,),
    **{
        f"model.layers.{layer}.{name}.weight": shape
        for layer in range(2)
        for name, shape in _LAYER.items()
    },
}
# What its config.json says of it.
SIZES: dict[str, Any] = {
    "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": KEY_VALUES, "max_position_embeddings": 64,
}  # fmt: skip
VIRTUAL, KEY = 3, "prompt_embeddings"
TARGETS = ["q_proj", "v_proj", "down_proj"]
CONFIG: dict[str, Any] = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "luthier-tiny",
    "r": RANK, "lora_alpha": 4, "lora_dropout": 0.0, "target_modules": TARGETS, "bias": "none",
    "fan_in_fan_out": False, "use_rslora": False, "modules_to_save": None,
    "init_lora_weights": True, "rank_pattern": {}, "alpha_pattern": {}, "use_dora": False,
    "auto_mapping": None, "inference_mode": True,
}  # fmt: skip
_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


def name_of(module: str, half: str) -> str:
    return f"base_model.model.{module}.lora_{half}.weight"


def numbers(shape: Sequence[int], dtype: str = "F32") -> tuple[str, list[int], bytes]:
    """Small numbers that differ, as a tensor."""
    values = np.linspace(-0.5, 0.5, math.prod(shape), dtype="<f4")
    if dtype == "BF16":
        return dtype, list(shape), (values.view("<u4") >> 16).astype("<u2").tobytes()
    return dtype, list(shape), values.astype(_NUMPY.get(dtype, "<i1")).tobytes()


def lora(
    rank: int = RANK,
    *,
    dtype: str = "F32",
    scale: int = 1,
    base: Mapping[str, tuple[int, ...]] = BASE,
) -> Tensors:
    """The A and B of all target modules, `scale` times as wide as the base."""
    tensors: Tensors = {}
    for weight, shape in base.items():
        module = weight.removesuffix(".weight")
        if module.rpartition(".")[2] in TARGETS:
            out, inner = shape
            tensors[name_of(module, "A")] = numbers((rank, inner * scale), dtype)
            tensors[name_of(module, "B")] = numbers((out * scale, rank), dtype)
    return tensors


def dora() -> Tensors:
    """The same, with a magnitude for each output."""
    tensors = lora()
    for name, (_, shape, _) in list(tensors.items()):
        if name.endswith("lora_B.weight"):
            magnitude = name.replace("lora_B.weight", "lora_magnitude_vector")
            tensors[magnitude] = numbers((shape[0],))
    return tensors


def safetensors(tensors: Tensors) -> bytes:
    """A well-formed file."""
    header, data = {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data += raw
    return file_of(header, data)


def file_of(header: object, data: bytes = b"", *, declared: int | None = None) -> bytes:
    """A file of any header: an object becomes JSON, bytes stay as they are."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if declared is None else declared).to_bytes(8, "little") + raw + data


def adapter(**changes: Any) -> dict[str, bytes]:
    """The files of a good adapter; changes are of its config."""
    return {
        "adapter_config.json": json.dumps({**CONFIG, **changes}).encode(),
        "adapter_model.safetensors": safetensors(lora()),
    }


def prompt_tuning(**changes: Any) -> dict[str, bytes]:
    """The files of good prompt tuning; changes are of its config."""
    config = {
        "peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": VIRTUAL,
        "token_dim": HIDDEN, "num_layers": 2, "num_attention_heads": 2, "modules_to_save": None,
        "num_transformer_submodules": 1, "prompt_tuning_init": "RANDOM", "auto_mapping": None,
    }  # fmt: skip
    return _virtual(config | changes, HIDDEN)


def prefix_tuning(**changes: Any) -> dict[str, bytes]:
    """The same of prefix tuning."""
    config = {
        "peft_type": "PREFIX_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": VIRTUAL,
        "token_dim": KEY_VALUES, "num_layers": 2, "num_attention_heads": 1,
        "num_transformer_submodules": 1, "prefix_projection": False, "auto_mapping": None,
    }  # fmt: skip
    return _virtual(config | changes, 2 * 2 * KEY_VALUES)


def _virtual(config: dict[str, Any], width: int) -> dict[str, bytes]:
    return {
        "adapter_config.json": json.dumps(config).encode(),
        "adapter_model.safetensors": safetensors({KEY: numbers((VIRTUAL, width))}),
    }


def with_weights(weights: bytes, **changes: Any) -> dict[str, bytes]:
    return {**adapter(**changes), "adapter_model.safetensors": weights}


def tar(files: Mapping[str, bytes]) -> bytes:
    """A plain tar of plain names."""
    return b"".join(tar_stream((name, len(data), [data]) for name, data in files.items()))


def tar_of(*entries: tuple[str, bytes] | tarfile.TarInfo) -> bytes:
    """A tar of anything that tarfile can write."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                archive.addfile(entry)
            else:
                info = tarfile.TarInfo(entry[0])
                info.size = len(entry[1])
                archive.addfile(info, io.BytesIO(entry[1]))
    return out.getvalue()[: archive.offset]  # without the padding to a whole tape record


def special(name: str, kind: bytes, **attributes: Any) -> tarfile.TarInfo:
    """An entry that is no file."""
    info = tarfile.TarInfo(name)
    info.type = kind
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    return info
