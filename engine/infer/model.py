"""A causal language model that is served: loaded from a local folder, run alone or in rows."""

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils.logging import disable_progress_bar

from engine.infer.errors import ModelUnusable
from engine.infer.linear import LinearLayers
from engine.infer.lora import LoraWeights
from engine.infer.peft_folder import CONFIG_NAME as ADAPTER_CONFIG_NAME
from engine.infer.slots import Feed, LayerShape, SlotCache, visible
from engine.infer.virtual_tokens import VirtualTokens, load_prefix, load_prompt

_DEFAULT_CONTEXT = 2048  # of models that name no limit


class ServedModel:
    """A base or a full fine-tune, with room in its layers for adapters.

    Run it in one thread at a time.
    """

    def __init__(self, name: str, model: Any, *, max_context: int | None = None) -> None:
        self.name = name
        self._model = model
        self._body = model.base_model  # what is below a head
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.layers = LinearLayers(model, self.device, self.dtype)
        config = model.config.get_text_config(decoder=True)
        self.vocabulary = int(model.get_input_embeddings().weight.shape[0])
        self.width = int(config.hidden_size)
        limit = getattr(config, "max_position_embeddings", None)
        self.context_length = min(limit or _DEFAULT_CONTEXT, max_context or limit or 1 << 30)
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        # Architectures whose layers differ take a mask for each kind of layer, and others one.
        self._layer_kinds = frozenset(getattr(config, "layer_types", None) or ())
        self._window: int | None = getattr(config, "sliding_window", None)
        self._picked: torch.Tensor | None = None
        self.rows: tuple[LayerShape, ...] | None = None  # set by whoever tried: see batching.py
        self._body.register_forward_hook(self._pick)

    def load_virtual_tokens(self, folder: Path, kind: str) -> VirtualTokens:
        """Read a folder of prompt or prefix tuning for this model. Raises AdapterRefused."""
        load = {"prompt_tuning": load_prompt, "prefix_tuning": load_prefix}[kind]
        return load(folder, self._model, context_length=self.context_length)

    def new_cache(self, virtual_tokens: VirtualTokens | None = None) -> Any:
        """The attention state that a sequence begins with; in the thread that runs the model."""
        cache = DynamicCache(config=self._model.config)
        if virtual_tokens is None:
            return cache
        self.layers.activate(None)
        return virtual_tokens.begin(self._model, cache)

    def states_of(self, virtual_tokens: VirtualTokens) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The same by layer, to be copied; in the thread that runs the model."""
        self.layers.activate(None)
        cache = DynamicCache(config=self._model.config)
        return virtual_tokens.states(self._model, cache)

    def forward(
        self, token_ids: Sequence[int], cache: Any, lora: LoraWeights | None, *, keep: int
    ) -> torch.Tensor:
        """Feed the next tokens of a sequence. Returns the logits after the last `keep` of them."""
        self.layers.activate(lora)
        ids = torch.tensor([list(token_ids)], device=self.device)
        options = {"logits_to_keep": keep} if self._keeps_logits else {}
        output = self._model(input_ids=ids, past_key_values=cache, use_cache=True, **options)
        return output.logits[0, -keep:]

    def forward_rows(
        self,
        feed: Feed,
        cache: SlotCache,
        loras: Sequence[LoraWeights | None],
        wanted: torch.Tensor,
    ) -> torch.Tensor:
        """Feed the next tokens of rows of a batch, each row with its own LoRA or with none.

        wanted: which of the fed tokens to give the logits after, as rows [m, 2] of (row of the
        feed, place in it). Returns logits [m, vocabulary].
        """
        self.layers.activate_rows(feed.first, loras)
        cache.aim(feed)
        self._picked = wanted
        try:
            output = self._model(
                input_ids=feed.ids,
                # Padding is written beyond what positions a model may know.
                position_ids=feed.positions.masked_fill(feed.is_padding, 0),
                attention_mask=self._masks(feed),
                past_key_values=cache,
                use_cache=True,
            )
        finally:
            self._picked = None
        logits: torch.Tensor = output.logits[0]
        return logits

    def _masks(self, feed: Feed) -> Any:
        if not self._layer_kinds:
            return self._mask(visible(feed, self._window))
        masks = {"full_attention": self._mask(visible(feed, None))}
        if "sliding_attention" in self._layer_kinds:
            masks["sliding_attention"] = self._mask(visible(feed, self._window))
        return masks

    def _mask(self, mask: torch.Tensor) -> torch.Tensor:
        if self._model.config._attn_implementation != "eager":  # no public name
            return mask
        lowest = torch.finfo(self.dtype).min
        return torch.zeros(mask.shape, dtype=self.dtype, device=mask.device).masked_fill(
            ~mask, lowest
        )

    def _pick(self, body: Any, inputs: Any, output: Any) -> Any:
        """Leave of the hidden states those whose logits are wanted: the head is a large layer."""
        if self._picked is None:
            return None
        hidden = output.last_hidden_state
        output.last_hidden_state = hidden[self._picked[:, 0], self._picked[:, 1]][None]
        return output

    def last_hidden(
        self, token_ids: Sequence[int], cache: Any, lora: LoraWeights | None
    ) -> torch.Tensor:
        """Feed the next tokens. Returns the hidden state [width] after the last of them, normed."""
        self.layers.activate(lora)
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
    dtype: torch.dtype | None = None,
    architecture: Any = AutoModelForCausalLM,
    **options: Any,
) -> ServedModel:
    """Load from a local folder: safetensors only, no code from it, nothing from the network.

    In float32 on a CPU and bfloat16 on CUDA, where no `dtype` is given. `architecture` is a class
    of Transformers that takes the `options`. Raises ModelUnusable.
    """
    check_model_folder(folder)
    disable_progress_bar()
    try:
        model, loading = architecture.from_pretrained(
            folder,
            dtype=dtype or serving_dtype(device),
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
