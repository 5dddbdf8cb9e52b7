"""QLoRA's base in 4 bits, and the honest figures of an adapter that was trained on it.

What was trained on the 4-bit base is served on the base as it is. So the probes in the manifest are
those of the adapter on the base as it is, and how far training saw other log-probs is a metric.
"""

from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from engine.infer.probes import compute_logprobs
from engine.spec import QloraPeft
from engine.train.errors import TrainingFailed

LARGE_GAP = 0.1  # nats a token: more than this, and the adapter does noticeably otherwise
ROOM_TO_RUN = 1.25  # of a model's size: itself, and the activations of a probe

Rows = list[tuple[float, ...]]


def quantized(peft: QloraPeft, dtype: torch.dtype) -> dict[str, Any]:
    """What from_pretrained needs for a base in NF4 that computes in `dtype`.

    TrainingFailed where bitsandbytes is not there.
    """
    try:
        import bitsandbytes  # noqa: F401 - transformers would say it less clearly, and later
    except (ImportError, RuntimeError, OSError) as error:
        raise TrainingFailed(
            "quantization_unavailable",
            f"This worker cannot quantize: bitsandbytes does not load ({error}). Use "
            '`{"type": "lora"}`, or ask the operator to install it.',
        ) from error
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=peft.use_double_quant,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": config}


def keep_unpacked(base: torch.nn.Module) -> None:
    """Keep a forward in eval mode from changing a base in 4 bits to the packed layout of some CPUs.

    That layout has no gradient, so later steps would be silently wrong, and it rounds the scales.
    """
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def remember(model: Any) -> None:
    """Keep the weights of an adapter that goes on, which TRL's cast would round."""
    model.before_cast = {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def keep_float32(model: Any) -> None:
    """Undo TRL's cast of an adapter on a quantized base to bfloat16, which loses small steps."""
    kept = model.__dict__.pop("before_cast", {})
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = kept.get(name, parameter.data).float()


def measure_on_whole_base(
    base_path: Path, folder: Path, probes: list[tuple[list[int], int]], dtype: torch.dtype
) -> tuple[Rows, Rows]:
    """Log-probs of the probes by the base as it is, and by it with the adapter in `folder`.

    On the GPU where what training left of its memory holds the whole base, else on the CPU.
    """
    base = AutoModelForCausalLM.from_pretrained(
        base_path, dtype=dtype, local_files_only=True, trust_remote_code=False
    ).eval()
    base.to(device_for(base.get_memory_footprint()))
    plain = [tuple(compute_logprobs(base, ids, start)) for ids, start in probes]
    tuned = PeftModel.from_pretrained(base, folder).eval()
    return plain, [tuple(compute_logprobs(tuned, ids, start)) for ids, start in probes]


def gap(trained: Rows, served: Rows) -> float:
    """The mean difference of a token's log-prob between both bases, in nats."""
    pairs = zip(trained, served, strict=True)
    return fmean(abs(a - b) for row in pairs for a, b in zip(*row, strict=True))


def device_for(size_bytes: int) -> torch.device:
    """Where a model of this size runs: on the GPU where what is free of its memory holds it."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        free_bytes, _ = torch.cuda.mem_get_info()
        if free_bytes > size_bytes * ROOM_TO_RUN:
            return torch.device("cuda")
    return torch.device("cpu")
