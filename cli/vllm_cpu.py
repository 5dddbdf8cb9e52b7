"""A repair of vLLM on CPUs, of rows of the base that share a batch with adapters.

vLLM marks such rows with slot -1. Its kernels for GPUs skip them; its torch operations for CPUs
take the last slot, as an index of -1 does in torch, and the base's request is answered by an
adapter, perhaps another tenant's, without a word (vllm-project/vllm#48421 and #49656, open; seen in
0.32).
"""

from types import ModuleType
from typing import Any

from cli.failure import CommandFailed


def repair() -> None:
    """Make such rows be skipped where they are not. Raises CommandFailed where that fails."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    if _skips_the_base(lora_ops):
        return
    shrink = lora_ops.bgmv_shrink

    def bgmv_shrink(
        inputs: Any, weights: Any, output: Any, indices: Any, scaling: float = 1.0
    ) -> None:
        """x A for each row, and 0 for those of the base, of which B then makes 0 too."""
        shrink(inputs, weights, output, indices, scaling)
        output.masked_fill_((indices < 0).unsqueeze(-1), 0)

    lora_ops.bgmv_shrink = punica_cpu.bgmv_shrink = bgmv_shrink
    if not _skips_the_base(lora_ops):
        raise CommandFailed(
            "This vLLM answers requests for the base with adapters that share their batch, and "
            "Luthier's repair does not fit it; use vLLM 0.32, or one with that fault mended."
        )


def _skips_the_base(lora_ops: ModuleType) -> bool:
    """Whether a row without an adapter, beside one with the last of two, is left alone."""
    import torch

    rows, weights = torch.ones(2, 4), torch.ones(2, 1, 3, 4)
    starts, lengths, slots = torch.tensor([0, 1]), torch.tensor([1, 1]), torch.tensor([1, -1])
    one, several = torch.zeros(2, 3), torch.zeros(2, 3)
    lora_ops.bgmv_shrink(rows, weights, one, slots)
    lora_ops.sgmv_shrink(rows, weights, several, starts, lengths, slots, 2, 1, 2, 1.0)
    return all(bool(found[0].all()) and not found[1].any() for found in (one, several))
