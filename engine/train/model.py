"""The base model, made trainable by one PEFT kind, and its result as PEFT-format files."""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForCausalLM, PreTrainedModel

from engine.spec import FullPeft, LoraPeft, Peft, PrefixTuningPeft, PromptTuningPeft, QloraPeft
from engine.train.errors import TrainingFailed
from engine.train.quantization import keep_float32, keep_unpacked, quantized
from engine.train.virtual_tokens import add_virtual_tokens

TaskType = Literal["CAUSAL_LM", "SEQ_CLS"]

# Copied beside fully fine-tuned weights, so that the folder is a model of its own.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def load_base(
    path: Path, peft: Peft | None = None, *, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """The causal language model in a local folder, in float32 on a CPU, bfloat16 on a GPU.

    For QLoRA its linear layers are in 4 bits. Raises TrainingFailed.
    """
    dtype = dtype or compute_dtype()
    options = quantized(peft, dtype) if isinstance(peft, QloraPeft) else {}
    try:
        base: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, local_files_only=True, trust_remote_code=False, **options
        )
    except (OSError, ValueError, KeyError) as error:
        raise TrainingFailed(
            "base_model_unusable", f"The base model does not load: {error}"
        ) from error
    keep_unpacked(base)
    return base


def compute_dtype() -> torch.dtype:
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def add_peft(
    base: PreTrainedModel, peft: Peft, *, task_type: TaskType = "CAUSAL_LM"
) -> torch.nn.Module:
    """The base with what is to be trained; seed torch before, since most kinds begin at random.

    A SEQ_CLS base has a scalar head, which is trained whole.
    """
    match peft:
        case FullPeft():
            return base
        case PromptTuningPeft() | PrefixTuningPeft():
            return add_virtual_tokens(base, peft)
        case LoraPeft() | QloraPeft():
            return _add_lora(base, peft, task_type)


def _add_lora(
    base: PreTrainedModel, peft: LoraPeft | QloraPeft, task_type: TaskType
) -> torch.nn.Module:
    known = ", ".join(linear_names(base))
    try:
        model = get_peft_model(base, lora_config(peft, task_type))
    except ValueError as error:
        way = f'Change `peft.target_modules` to "all-linear" or to some of: {known}.'
        raise TrainingFailed("peft_invalid", f"{error} {way}") from error
    for part in (base.get_input_embeddings(), base.get_output_embeddings()):
        if isinstance(part, BaseTunerLayer):
            raise TrainingFailed(
                "peft_invalid",
                "LoRA on the embeddings or the output head could not be served; leave them out of "
                "`peft.target_modules`.",
            )
    if isinstance(peft, QloraPeft):
        keep_float32(model)
    return model


def linear_names(base: PreTrainedModel) -> list[str]:
    """The last names of the layers that LoRA can be put on."""
    head = base.get_output_embeddings()
    modules = base.named_modules()
    linear = (name for name, m in modules if isinstance(m, torch.nn.Linear) and m is not head)
    return sorted({name.rpartition(".")[2] for name in linear})


def lora_config(peft: LoraPeft | QloraPeft, task_type: TaskType = "CAUSAL_LM") -> LoraConfig:
    whole = peft.target_modules == "all-linear"
    own = peft.model_dump(include={"init_lora_weights"})  # QLoRA has none
    return LoraConfig(
        task_type=task_type,
        r=peft.r,
        lora_alpha=peft.lora_alpha,
        lora_dropout=peft.lora_dropout,
        target_modules="all-linear" if whole else list(peft.target_modules),
        use_rslora=peft.use_rslora,
        use_dora=peft.use_dora,
        **own,
    )


def trainable_parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def export(
    model: Any,
    base_name: str,
    base_path: Path,
    folder: Path,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write the trained weights to `folder`, with nothing in them of this machine or this run.

    Full: a model folder with its tokenizer. The other kinds: `adapter_config.json` and
    `adapter_model.safetensors`. The same weights give the same bytes. `weights` are the model's,
    gathered, where no process has all of them.
    """
    kept: dict[str, Any] = {"state_dict": weights} if weights else {}
    if isinstance(model, PeftModel):
        kept["selected_adapters"] = [model.active_adapter]
    model.save_pretrained(folder, **kept)
    (folder / "README.md").unlink(missing_ok=True)
    if isinstance(model, PeftModel):
        _settle_config(folder / "adapter_config.json", base_name)
        return
    for name in TOKENIZER_FILES:
        if (base_path / name).is_file():
            shutil.copy(base_path / name, folder / name)


def _settle_config(path: Path, base_name: str) -> None:
    """Name the base as clients do, and order what peft keeps as sets."""
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = base_name
    if config.get("prefix_projection"):  # the weights are what it made
        config |= {"prefix_projection": False, "encoder_hidden_size": None}
    for name in ("target_modules", "modules_to_save", "exclude_modules"):
        if isinstance(config.get(name), list):
            config[name] = sorted(config[name])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
