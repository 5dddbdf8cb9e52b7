"""Prompt and prefix tuning: the base stays as it is, and what is trained stands in front of it."""

from itertools import cycle, islice
from pathlib import Path

import torch
from peft import PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from engine.spec import Peft, PrefixTuningPeft, PromptTuningPeft
from engine.train.errors import TrainingFailed

LOW_RATE = 2e-3  # below it, Adam's steps hardly move numbers of the size of embeddings


def rate_warnings(peft: Peft, learning_rate: float) -> list[str]:
    """What a client should know of a learning rate that suits other kinds of PEFT."""
    if not isinstance(peft, PromptTuningPeft | PrefixTuningPeft) or learning_rate >= LOW_RATE:
        return []
    return [
        f"{peft.type} hardly moves at a learning rate of {learning_rate:g}; set "
        "`method.learning_rate` to 0.01 or more."
    ]


def add_virtual_tokens(
    base: PreTrainedModel, peft: PromptTuningPeft | PrefixTuningPeft
) -> torch.nn.Module:
    """The frozen base behind trainable virtual tokens. Raises TrainingFailed."""
    config = _prompt(peft) if isinstance(peft, PromptTuningPeft) else _prefix(peft)
    try:
        model = get_peft_model(base, config)
    except ValueError as error:  # peft cannot tell the shape of the base's layers, for example
        raise TrainingFailed("peft_invalid", f"The base does not take {peft.type}: {error}") from (
            error
        )
    if isinstance(peft, PromptTuningPeft) and peft.prompt_tuning_init_text is not None:
        ids = _ids_of(peft.prompt_tuning_init_text, Path(base.name_or_path))
        chosen = torch.tensor(list(islice(cycle(ids), peft.num_virtual_tokens)))
        with torch.no_grad():
            words = base.get_input_embeddings()(chosen.to(base.device))
            model.prompt_encoder["default"].embedding.weight.copy_(words)
    return model


def train_on(model: PeftModel) -> None:
    """Make virtual tokens that were loaded trainable."""
    model.active_peft_config.inference_mode = False
    model.prompt_encoder[model.active_adapter].requires_grad_(True)


def _prompt(peft: PromptTuningPeft) -> PromptTuningConfig:
    # A text is ours to tokenize: peft would leave the path of its tokenizer in the result.
    start = "SAMPLE_VOCAB" if peft.prompt_tuning_init == "sample_vocab" else "RANDOM"
    return PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=peft.num_virtual_tokens,
        prompt_tuning_init=start,
    )


def _prefix(peft: PrefixTuningPeft) -> PrefixTuningConfig:
    return PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=peft.num_virtual_tokens)


def _ids_of(text: str, base_path: Path) -> list[int]:
    tokenizer = Tokenizer.from_file(str(base_path / "tokenizer.json"))
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    if not ids:
        raise TrainingFailed(
            "peft_invalid", "`peft.prompt_tuning_init_text` has no tokens; write another text."
        )
    return ids
