"""A causal language model that is served: loaded from a local folder, one forward at a time."""

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils.logging import disable_progress_bar

from engine.infer.errors import ModelUnusable
from engine.infer.lora import LoraSwitch, LoraWeights
from engine.infer.peft_folder import CONFIG_NAME as ADAPTER_CONFIG_NAME
from engine.infer.virtual_tokens import VirtualTokens, load_prefix, load_prompt

_DEFAULT_CONTEXT = 2048  # of models that name no limit


class ServedModel:
    """A base or a full fine-tune, with room in its layers for one adapter at a time."""

    def __init__(self, name: str, model: Any, *, max_context: int | None = None) -> None:
        self.name = name
        self._model = model
        self._body = model.base_model  # what is below a head
        self._switch = LoraSwitch(model)
        self.linear_shapes = self._switch.shapes
        self.linear_weight = self._switch.weight_of
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.vocabulary = int(model.get_input_embeddings().weight.shape[0])
        self.width = int(model.config.get_text_config(decoder=True).hidden_size)
        limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        self.context_length = min(limit or _DEFAULT_CONTEXT, max_context or limit or 1 << 30)
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    def load_virtual_tokens(self, folder: Path, kind: str) -> VirtualTokens:
        """Read a folder of prompt or prefix tuning for this model. Raises AdapterRefused."""
        load = {"prompt_tuning": load_prompt, "prefix_tuning": load_prefix}[kind]
        return load(folder, self._model, context_length=self.context_length)

    def new_cache(self, virtual_tokens: VirtualTokens | None = None) -> Any:
        """The attention state that a sequence begins with; in the thread that runs the model."""
        cache = DynamicCache(config=self._model.config)
        if virtual_tokens is None:
            return cache
        self._switch.activate(None)
        return virtual_tokens.begin(self._model, cache)

    def forward(
        self, token_ids: Sequence[int], cache: Any, lora: LoraWeights | None, *, keep: int
    ) -> torch.Tensor:
        """Feed the next tokens of a sequence. Returns the logits after the last `keep` of them."""
        self._switch.activate(lora)
        ids = torch.tensor([list(token_ids)], device=self.device)
        options = {"logits_to_keep": keep} if self._keeps_logits else {}
        output = self._model(input_ids=ids, past_key_values=cache, use_cache=True, **options)
        return output.logits[0, -keep:]

    def last_hidden(
        self, token_ids: Sequence[int], cache: Any, lora: LoraWeights | None
    ) -> torch.Tensor:
        """Feed the next tokens. Returns the hidden state [width] after the last of them, normed."""
        self._switch.activate(lora)
        ids = torch.tensor([list(token_ids)], device=self.device)
        output = self._body(input_ids=ids, past_key_values=cache, use_cache=True)
        return output.last_hidden_state[0, -1]

    def part(self, name: str) -> Any:
        """A part of the model by its attribute, such as a head; None where there is none."""
        return getattr(self._model, name, None)


def load_model(
    name: str,
    folder: Path,
    device: torch.device,
    *,
    max_context: int | None = None,
    architecture: Any = AutoModelForCausalLM,
    **options: Any,
) -> ServedModel:
    """Load from a local folder: safetensors only, no code from it, nothing from the network.

    float32 on a CPU and bfloat16 on CUDA. `architecture` is a class of Transformers that takes the
    `options`. Raises ModelUnusable.
    """
    check_model_folder(folder)
    disable_progress_bar()
    try:
        model, loading = architecture.from_pretrained(
            folder,
            dtype=serving_dtype(device),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelUnusable(
            "model_unusable", f"The model of {name!r} cannot be loaded: {error}"
        ) from error
    if loading["missing_keys"]:  # Transformers fills them with random numbers
        raise ModelUnusable(
            "model_unusable",
            f"The model of {name!r} lacks weights: {', '.join(sorted(loading['missing_keys'])[:5])}"
            "; export it again.",
        )
    return ServedModel(name, model.to(device).eval(), max_context=max_context)


def serving_dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def check_model_folder(folder: Path) -> None:
    """Refuse what would make Transformers run code, or weights, from elsewhere."""
    config = read_json(folder / "config.json")
    tokenizer_config = read_json(folder / "tokenizer_config.json")
    if not config:
        raise ModelUnusable("model_unusable", "The model has no config.json; export it again.")
    # An attention implementation with a slash is a kernel to be downloaded.
    kernel = "/" in str(config.get("attn_implementation", ""))
    if kernel or "auto_map" in config or "auto_map" in tokenizer_config:
        raise ModelUnusable(
            "model_needs_code",
            "The model's config asks for Python code of its own (auto_map), which is never run; "
            "use a model whose architecture Transformers ships.",
        )
    if (folder / ADAPTER_CONFIG_NAME).exists():
        raise ModelUnusable(
            "model_unusable",
            f"The model's folder has an {ADAPTER_CONFIG_NAME}; merge the adapter or take it out.",
        )


def default_stop_token_ids(folder: Path) -> frozenset[int]:
    """The end-of-sequence ids that a model's own configuration names."""
    for name in ("generation_config.json", "config.json"):
        ids = read_json(folder / name).get("eos_token_id")
        if ids is not None:
            return frozenset(ids if isinstance(ids, list) else [ids])
    return frozenset()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty when the file is not there or is not one."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
