"""Prompt and prefix tuning: the base stays as it is, and what is trained stands in front of it."""

from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from peft import (
    PrefixEncoder,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
    load_peft_weights,
)
from peft.utils import set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from engine.spec import Peft, PrefixTuningPeft, PromptTuningPeft
from engine.train.errors import TrainingFailed

LOW_RATE = 2e-3  # below it, Adam's steps hardly move numbers of the size of embeddings


def rate_warnings(peft: Peft, learning_rate: float) -> list[str]:
    """What a client should know of a learning rate that suits other kinds of PEFT."""
    if not isinstance(peft, PromptTuningPeft | PrefixTuningPeft) or learning_rate >= LOW_RATE:
        return []
    if isinstance(peft, PrefixTuningPeft) and peft.prefix_projection:
        return []  # its network moves as other networks do
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


def _prompt(peft: PromptTuningPeft) -> PromptTuningConfig:
    # A text is ours to tokenize: peft would leave the path of its tokenizer in the result.
    start = "SAMPLE_VOCAB" if peft.prompt_tuning_init == "sample_vocab" else "RANDOM"
    return PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=peft.num_virtual_tokens,
        prompt_tuning_init=start,
    )


def _prefix(peft: PrefixTuningPeft) -> PrefixTuningConfig:
    return PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=peft.num_virtual_tokens,
        prefix_projection=peft.prefix_projection,
        encoder_hidden_size=peft.encoder_hidden_size if peft.prefix_projection else None,
    )


def continued(
    base: PreTrainedModel, peft: PromptTuningPeft | PrefixTuningPeft, folder: Path
) -> torch.nn.Module:
    """The frozen base behind the virtual tokens of an adapter, which go on. Raises TrainingFailed.

    peft itself loads them for serving alone.
    """
    model = add_virtual_tokens(base, peft)
    try:
        set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
    except RuntimeError as error:
        text = f"The adapter in `init` does not fit the base: {error}"
        raise TrainingFailed("init_unusable", text) from error
    return model


def projection(model: Any) -> torch.nn.Module | None:
    """The network that makes a prefix while it is trained, where there is one."""
    encoders = dict(getattr(model, "prompt_encoder", {}))
    found = encoders.get("default")
    return found if isinstance(found, PrefixEncoder) and found.prefix_projection else None


class ProjectionCheckpoints(TrainerCallback):
    """Keeps the network in every checkpoint: peft saves what it makes alone."""

    FILE = "prefix_encoder.safetensors"

    def __init__(self, network: torch.nn.Module) -> None:
        self._network = network

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        folder = Path(args.output_dir or "") / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        save_file(self._network.state_dict(), folder / self.FILE)

    def load(self, folder: str, _model: Any = None) -> None:
        """In place of the trainer's own loading of an adapter."""
        self._network.load_state_dict(load_file(Path(folder) / self.FILE))


def _ids_of(text: str, base_path: Path) -> list[int]:
    tokenizer = Tokenizer.from_file(str(base_path / "tokenizer.json"))
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    if not ids:
        raise TrainingFailed(
            "peft_invalid", "`peft.prompt_tuning_init_text` has no tokens; write another text."
        )
    return ids
