"""adapter_config.json: how it is read, and what we can serve of what LoRA can be in PEFT."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from adapters.errors import AdapterInvalid

CONFIG_NAME = "adapter_config.json"
HEAD = "score"  # a reward model's scalar head
_HEADS = ("classifier", HEAD)  # peft names both, and saves the one that is there
_MAX_CONFIG_BYTES = 1 << 20
_MODULE_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")

# Options that change what an adapter computes beyond LoRA, rsLoRA and DoRA, and the code of each.
_UNSUPPORTED = {
    "modules_to_save": "modules_to_save_unsupported",
    "lora_bias": "lora_bias_unsupported",
    "layer_replication": "layer_replication_unsupported",
    "target_parameters": "target_parameters_unsupported",
    "trainable_token_indices": "trainable_tokens_unsupported",
    "alora_invocation_tokens": "lora_variant_unsupported",
    "arrow_config": "lora_variant_unsupported",
    "kasa_config": "lora_variant_unsupported",
    "monteclora_config": "lora_variant_unsupported",
    "use_bdlora": "lora_variant_unsupported",
    "use_qalora": "lora_variant_unsupported",
    "velora_config": "lora_variant_unsupported",
}
# Ways to begin that leave the base's own weights as they are; PiSSA, OLoRA and others change them.
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal", "lora_ga_stable", None)


class LoraConfigSummary(BaseModel):
    """What an adapter's configuration and weights come to; the first six as in engine.spec."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    r: int
    lora_alpha: float
    lora_dropout: float
    target_modules: Literal["all-linear"] | tuple[str, ...]
    use_rslora: bool
    use_dora: bool
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    fan_in_fan_out: bool
    modules: int = 0
    parameters: int = 0

    def rank_of(self, module: str) -> int:
        """The rank PEFT gives to a module; pattern keys are taken as names, never as regexes."""
        for name, rank in self.rank_pattern.items():
            if module == name or module.endswith("." + name):
                return rank
        return self.r

    def targets(self, module: str) -> bool:
        """Whether PEFT would put these weights on this module."""
        if isinstance(self.target_modules, str):
            return True
        return any(module == name or module.endswith("." + name) for name in self.target_modules)


def read_config(folder: Path, *, max_rank: int, scored: bool = False) -> LoraConfigSummary:
    """Read and check a folder's adapter_config.json; AdapterInvalid.

    With `scored` it is a reward model's, whose scalar head is saved beside the matrices.
    """
    config = load_config(folder)
    if scored:
        config = _without_head(config)
    if config.get("peft_type") != "LORA":
        kind = str(config.get("peft_type"))[:40]
        raise AdapterInvalid("peft_type_unsupported", f"peft_type is {kind!r}; only LORA is served")
    check_task(config)
    _check_features(config)
    summary = LoraConfigSummary(
        r=whole(config, "r"),
        lora_alpha=_number(config, "lora_alpha", 8),  # PEFT's own default
        lora_dropout=_number(config, "lora_dropout", 0),
        target_modules=_target_modules(config),
        use_rslora=config.get("use_rslora") is True,
        use_dora=config.get("use_dora") is True,
        rank_pattern=_rank_pattern(config),
        alpha_pattern=_alpha_pattern(config),
        fan_in_fan_out=config.get("fan_in_fan_out") is True,
    )
    check_rank(max(summary.r, *summary.rank_pattern.values(), 0), max_rank)
    return summary


def check_rank(rank: int, max_rank: int) -> None:
    """AdapterInvalid rank_too_high."""
    if rank > max_rank:
        text = f"rank {rank} is above this server's limit {max_rank}; train with a lower `peft.r`"
        raise AdapterInvalid("rank_too_high", text)


def load_config(folder: Path) -> dict[str, Any]:
    """The JSON object of a folder's adapter_config.json; AdapterInvalid."""
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise AdapterInvalid("config_missing", f"there is no {path.name}; PEFT writes one")
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise malformed(f"it is larger than {_MAX_CONFIG_BYTES} bytes")
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise malformed(f"it is not JSON ({str(error)[:100]})") from error
    if not isinstance(config, dict):
        raise malformed("it is not a JSON object")
    return config


def check_task(config: Mapping[str, Any]) -> None:
    """Whether the adapter is of a causal language model, and asks PEFT to import nothing else."""
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        task = str(config["task_type"])[:40]
        raise AdapterInvalid("task_type_unsupported", f"task_type is {task!r}; use CAUSAL_LM")
    mapping = config.get("auto_mapping") or {}
    library = (
        mapping.get("parent_library", "transformers") if isinstance(mapping, dict) else mapping
    )
    if str(library).partition(".")[0] != "transformers":
        raise malformed(f"auto_mapping would import {str(library)[:60]!r}; remove it")


def _without_head(config: Mapping[str, Any]) -> dict[str, Any]:
    """A reward model's configuration as that of the LoRA below its head."""
    heads = config.get("modules_to_save")
    if config.get("task_type") != "SEQ_CLS" or not isinstance(heads, list) or HEAD not in heads:
        text = f"a reward model has task_type SEQ_CLS, and its head {HEAD!r} in modules_to_save"
        raise AdapterInvalid("reward_head_missing", text)
    others = [name for name in heads if name not in _HEADS]
    return {**config, "task_type": "CAUSAL_LM", "modules_to_save": others}


def _check_features(config: Mapping[str, Any]) -> None:
    for option, code in _UNSUPPORTED.items():
        if config.get(option):
            text = f"the adapter uses `{option}`, which this server does not serve; train without"
            raise AdapterInvalid(code, text)
    if config.get("bias", "none") != "none":
        raise AdapterInvalid("lora_bias_unsupported", 'use `bias: "none"`; no other is served')
    if config.get("init_lora_weights", True) not in _PLAIN_STARTS:
        start = str(config["init_lora_weights"])[:40]
        text = f"init_lora_weights {start!r} changes the base; convert the adapter to plain LoRA"
        raise AdapterInvalid("changed_base_unsupported", text)


def _target_modules(config: Mapping[str, Any]) -> Literal["all-linear"] | tuple[str, ...]:
    targets = config.get("target_modules")
    if targets is None or isinstance(targets, str):
        return "all-linear"  # or a regular expression, which we do not run: the weights decide
    if not isinstance(targets, list) or not targets or not all(map(_is_module_name, targets)):
        raise malformed("target_modules is not a list of module names")
    return tuple(sorted(targets))


def _rank_pattern(config: Mapping[str, Any]) -> dict[str, int]:
    pattern = _by_module(config, "rank_pattern")
    return {name: whole(pattern, name) for name in pattern}


def _alpha_pattern(config: Mapping[str, Any]) -> dict[str, float]:
    pattern = _by_module(config, "alpha_pattern")
    return {name: _number(pattern, name, 8) for name in pattern}


def _by_module(config: Mapping[str, Any], option: str) -> dict[str, Any]:
    pattern = config.get(option) or {}
    if not isinstance(pattern, dict) or not all(map(_is_module_name, pattern)):
        raise malformed(f"{option} is not a map from module names; regular expressions are not run")
    return pattern


def _is_module_name(name: Any) -> bool:
    return isinstance(name, str) and _MODULE_NAME.fullmatch(name) is not None


def whole(config: Mapping[str, Any], name: str) -> int:
    """A field that is a whole number above 0; AdapterInvalid."""
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise malformed(f"{name} is not a whole number above 0")
    return value


def _number(config: Mapping[str, Any], name: str, default: float) -> float:
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise malformed(f"{name} is not a number that makes sense")
    return float(value)


def malformed(what: str) -> AdapterInvalid:
    """config_malformed, with what is wrong in the file."""
    return AdapterInvalid("config_malformed", f"{CONFIG_NAME}: {what}")
