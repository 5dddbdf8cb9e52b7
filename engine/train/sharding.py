"""Weights that no process has whole: FSDP2 over the processes of a run, where one is too small.

Zhao et al. 2023, https://arxiv.org/abs/2304.11277. Elsewhere each process has all of the model, and
gradients are averaged (DDP).
"""

import os
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor

from engine.plan import TrainPlan
from engine.spec import FullPeft, QloraPeft
from engine.train import spread

METHODS = frozenset({"sft"})  # whose loss knows of nothing but the model it is given


def arguments(plan: TrainPlan) -> dict[str, Any]:
    """What a Trainer of one of several processes is told besides."""
    if spread.world() == 1:
        return {}
    if not is_sharded(plan):
        # peft's layers all take part in every pass, and so does a whole model.
        return {"ddp_find_unused_parameters": False}
    looked_at = plan.method.validation_split > 0 or plan.validation is not None
    config = {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "state_dict_type": "FULL_STATE_DICT",
        # It has its own, which knows when weights are there.
        "activation_checkpointing": plan.method.gradient_checkpointing,
    }
    return {
        "fsdp": True,
        "fsdp_config": config,
        "activation_checkpointing": False,
        # An evaluation before training would shard the model away from its optimizer.
        "eval_on_start": looked_at and plan.resume_from is None,
    }


def is_sharded(plan: TrainPlan) -> bool:
    """Whether a full fine-tuning, or a base that one process has no room for, is shared out."""
    if spread.world() == 1 or plan.method.type not in METHODS or isinstance(plan.peft, QloraPeft):
        return False
    return isinstance(plan.peft, FullPeft) or plan.spread.peak_bytes > room_bytes(plan)


def room_bytes(plan: TrainPlan) -> int:
    """What one process may use: its GPU's memory, or its share of the machine's."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // plan.spread.processes


def gathered(model: torch.nn.Module) -> dict[str, torch.Tensor] | None:
    """The weights of a sharded model on the CPU, whole in the first process; None: not sharded.

    Every process has to ask.
    """
    if not any(isinstance(weight, DTensor) for weight in model.parameters()):
        return None
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    whole: dict[str, torch.Tensor] = get_model_state_dict(model, options=options)
    return whole
