"""The kinds of adapters that may come from outside, each with its own check."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from adapters.errors import AdapterInvalid
from adapters.files import TEXT_FILES, WEIGHTS_NAME, check_files
from adapters.geometry import Geometry
from adapters.manifest import AdapterKind
from adapters.peft_config import CONFIG_NAME, LoraConfigSummary, load_config
from adapters.validation import validate_lora
from adapters.virtual_tokens import VirtualTokensSummary, validate_prefix, validate_prompt

Summary = LoraConfigSummary | VirtualTokensSummary


class Base(NamedTuple):
    """What an adapter is held against: its base's tensors by name, and its sizes."""

    tensors: Mapping[str, tuple[int, ...]]
    sizes: Callable[[], Geometry]


class Checked(NamedTuple):
    """An adapter that can be served: its kind, and what it comes to."""

    kind: AdapterKind
    summary: Summary


def validate_adapter(folder: Path, base: Base, *, max_rank: int) -> Checked:
    """Check a PEFT folder of any kind that is served. AdapterInvalid; AdapterError for the base."""
    check_files(folder, TEXT_FILES | {CONFIG_NAME, WEIGHTS_NAME})
    peft_type: Any = load_config(folder).get("peft_type")
    match peft_type:
        case "LORA":
            return Checked("lora", validate_lora(folder, base.tensors, max_rank=max_rank))
        case "PROMPT_TUNING":
            return Checked("prompt_tuning", validate_prompt(folder, base.sizes()))
        case "PREFIX_TUNING":
            return Checked("prefix_tuning", validate_prefix(folder, base.sizes()))
    raise AdapterInvalid(
        "peft_type_unsupported",
        f"peft_type is {str(peft_type)[:40]!r}; LORA, PROMPT_TUNING and PREFIX_TUNING are served",
    )
