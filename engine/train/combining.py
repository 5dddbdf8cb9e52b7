"""Several LoRA adapters on one base combined into a new one by PEFT, as a plain LoRA."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel

from engine.merging import BY_SVD, OF_ONE_RANK, MergeMethod
from engine.plan import Parent
from engine.train.deltas import lora_layers
from engine.train.errors import TrainingFailed

RESULT = "default"  # the name whose files peft writes without a folder of their own

Weights = Mapping[str, float]  # of the parents, by their names in the model


def load_parents(base: Any, parents: tuple[Parent, ...]) -> tuple[Any, Weights]:
    """The base with every parent on it, each under a name of its own."""
    weights = {f"parent{number}": parent.weight for number, parent in enumerate(parents)}
    first, *others = weights
    model = PeftModel.from_pretrained(base, parents[0].path, adapter_name=first)
    for name, parent in zip(others, parents[1:], strict=True):
        model.load_adapter(parent.path, adapter_name=name)
    return model.eval(), weights


def combine(model: Any, weights: Weights, method: MergeMethod, rank: int, base_path: Path) -> None:
    """Add the adapter RESULT of this rank to a model of parents, and let it compute.

    Raises TrainingFailed where the parents' ranks, or the layers' sizes, do not allow it.
    """
    how = method.combination_type
    assert how is not None
    _check_layers(model, weights, method, rank)
    _settle_configs(model, list(weights), base_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The density .* no pruning")
        model.base_model.add_weighted_adapter(
            list(weights),
            list(weights.values()),
            RESULT,
            combination_type=how,
            svd_rank=rank,
            svd_full_matrices=False,  # the rest of them would be cut off
            density=method.density,
            majority_sign_method=method.majority_sign_method or "total",
        )
    made = model.peft_config[RESULT].r
    if made != rank:
        raise _ranks_differ(f"the merged adapter would be of rank {made}, not {rank}")
    model.set_adapter(RESULT)


@contextmanager
def summed(model: Any, weights: Weights) -> Iterator[None]:
    """Within, the model computes with the exact weighted sum of the parents; after it, RESULT."""
    layers = [layer for _, layer in lora_layers(model)]
    before = [dict(layer.scaling) for layer in layers]
    for layer in layers:
        layer.scaling.update({n: layer.scaling[n] * w for n, w in weights.items() if n in layer.r})
    model.base_model.set_adapter(list(weights))
    try:
        yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling.update(scaling)
        model.base_model.set_adapter(RESULT)


def _check_layers(model: Any, weights: Weights, method: MergeMethod, rank: int) -> None:
    """What a rank that differs from layer to layer, as it may in an imported adapter, can upset."""
    for name, layer in lora_layers(model):
        ranks = {layer.r[parent] for parent in weights if parent in layer.r}
        if method.combination_type in OF_ONE_RANK and ranks != {rank}:
            shown = ", ".join(map(str, sorted(ranks)))
            raise _ranks_differ(f"{name} has matrices of rank {shown} where {rank} is needed")
        smallest = min(layer.in_features, layer.out_features)
        if method.combination_type in BY_SVD and rank > smallest:
            raise TrainingFailed(
                "rank_too_high",
                f"{name} has no more than {smallest} singular values; lower `svd_rank` from "
                f"{rank}.",
            )


def _ranks_differ(what: str) -> TrainingFailed:
    text = f"The adapters' ranks differ from layer to layer: {what}. Use svd, with an `svd_rank`."
    return TrainingFailed("ranks_differ", text)


def _settle_configs(model: Any, names: list[str], base_path: Path) -> None:
    """Make peft name the layers that the parents have, and no more of the first parent's options.

    It copies the first one's configuration: with rsLoRA the result would be scaled a second time
    (https://github.com/huggingface/peft/issues/3761), and a choice of layers would hide others'.
    """
    there = {
        layer_name
        for layer_name, layer in lora_layers(model)
        if any(name in layer.lora_A for name in names)
    }
    first = model.peft_config[names[0]]
    model.peft_config[names[0]] = LoraConfig(
        task_type="CAUSAL_LM",
        r=first.r,
        rank_pattern=first.rank_pattern,
        target_modules=_named_shortly(model, there),
        fan_in_fan_out=first.fan_in_fan_out,
        base_model_name_or_path=str(base_path),  # peft would ask a hub about the client's name
    )
    for name in names[1:]:
        model.peft_config[name].target_modules = set()


def _named_shortly(model: Any, names: set[str]) -> set[str]:
    """The last parts of the names, where no other layer of the base has one of them."""
    short = {name.rpartition(".")[2] for name in names}
    all_names = (name for name, _ in model.base_model.model.named_modules())
    return short if {n for n in all_names if n.rpartition(".")[2] in short} == names else names
