"""Reward models of a world: PEFT and transformers make them, and say what they score."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification

from tests.engine.infer.world import CONTEXT, SENTENCES, TARGETS, World, quiet_peft, write_base

PAD = 0  # of every base that write_base makes


@quiet_peft()
def add_reward(world: World, name: str, *, seed: int = 1, scores: bool = True, **lora: Any) -> Path:
    """A LoRA with random A, B and head, as peft saves it."""
    torch.manual_seed(seed)
    settings = {"r": 8, "lora_alpha": 16, "init_lora_weights": False, **lora}
    settings.setdefault("target_modules", TARGETS.get(world.architecture, "all-linear"))
    settings.setdefault("fan_in_fan_out", world.architecture == "gpt2")
    model = get_peft_model(load_headed(world.base), LoraConfig(task_type="SEQ_CLS", **settings))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "magnitude" in parameter_name:  # DoRA's begin where they change nothing
                parameter.mul_(torch.rand_like(parameter) + 0.5)
            if "score" in parameter_name:
                parameter.normal_()
    model.save_pretrained(world.root / name)
    return describe(world, name, model.eval() if scores else None)


def add_whole_reward(world: World, name: str, *, seed: int = 1) -> Path:
    """A whole model of the base's shape with a random head."""
    folder = world.root / name
    write_base(folder, world.architecture, seed=seed, context=CONTEXT)
    model = load_headed(folder)
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").unlink()
    return describe(world, name, model)


def load_headed(folder: Path) -> Any:
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=torch.float32
    )
    model.config.pad_token_id = PAD
    return model.eval()


@quiet_peft()
def load_reward(world: World, name: str) -> Any:
    """The reference: the model as transformers and peft load what was saved."""
    folder = world.root / name
    if not (folder / "adapter_config.json").exists():
        return load_headed(folder)
    return PeftModel.from_pretrained(load_headed(world.base), str(folder)).eval()


def expected_score(model: Any, ids: list[int]) -> float:
    with torch.no_grad():
        row = torch.tensor([ids])
        score: float = model(input_ids=row, attention_mask=torch.ones_like(row)).logits.item()
    return score


def describe(world: World, name: str, model: Any, **changes: Any) -> Path:
    """Write the manifest, with what the model itself gives the probes."""
    probes = []
    for text in SENTENCES[:3] if model is not None else []:
        ids = world.ids(text)
        probes.append({"token_ids": ids, "score": expected_score(model, ids)})
    manifest = {
        "kind": "reward",
        "contract": {"stop_token_ids": [1], "pad_token_id": PAD, "chat_template": "unused"},
        "scores": probes,
        "adapter_id": name,
        **changes,
    }
    (world.root / name / "manifest.json").write_text(json.dumps(manifest))
    return world.root / name
