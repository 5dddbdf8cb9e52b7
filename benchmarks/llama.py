"""A Llama of 135M parameters with random weights, the same every time: SmolLM's shape."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

NAME = "llama-135m"
VOCABULARY = 49_152


def llama_135m(**more: Any) -> PreTrainedModel:
    """Hidden 576, 30 layers, 9 heads and 3 of keys; `more` goes into its config."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        vocab_size=VOCABULARY,
        tie_word_embeddings=True,
        **more,
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model
