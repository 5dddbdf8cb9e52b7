"""LoRA adapters with random numbers in them, and merges of them in this process."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer

from engine.infer.probes import compute_logprobs
from engine.merging import MergeMethod
from engine.plan import Finished, Merged, MergePlan, Parent, Probe, Report, Warned
from engine.spec import FullPeft, LoraPeft, Peft
from engine.train import merge
from tests.engine.infer.world import load

CONTRACT = {"tokenizer_sha256": "0" * 64}
IDS = (3, 40, 41, 60, 61, 62, 63)


class Told:
    """The runner's end of the link; keeps what it is told."""

    def __init__(self, directive: str = "continue") -> None:
        self.directive = directive
        self.merged: list[Merged] = []
        self.warnings: list[str] = []

    def send(self, report: Report) -> None:
        match report:
            case Merged():
                self.merged.append(report)
            case Warned():
                self.warnings.append(report.message)


def make_adapter(
    base: Path, folder: Path, seed: int, *, scale: float = 0.05, probed: bool = True, **config: Any
) -> Parent:
    """A LoRA as peft saves it, each of its matrices normal, with what a manifest says of it."""
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]} | config
    model = get_peft_model(load(base), LoraConfig(task_type="CAUSAL_LM", **options)).eval()
    torch.manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            for matrix in (layer.lora_A["default"], layer.lora_B["default"]):
                torch.nn.init.normal_(matrix.weight, std=scale)
    model.save_pretrained(folder)
    probes = []
    if probed:
        ids = (*IDS, 64 + seed)
        said = tuple(compute_logprobs(model, ids, 2))
        probes = [Probe(token_ids=ids, prompt_tokens=2, logprobs=said, base_logprobs=said)]
    return Parent(adapter_id=folder.name, path=folder, weight=1.0, probes=tuple(probes))


def blend(
    base: Path,
    work_dir: Path,
    parents: list[Parent],
    how: str | None,
    *,
    rank: int = 4,
    seed: int = 0,
    directive: str = "continue",
    **method: Any,
) -> tuple[Finished, Told]:
    """Merge the parents by their weights; by no type: the one there is, into the base."""
    work_dir.mkdir()
    said = MergeMethod(
        adapters=[{"id": parent.adapter_id, "weight": parent.weight} for parent in parents],  # type: ignore[arg-type]  # as a client writes it
        combination_type=how,  # type: ignore[arg-type]  # as a client writes it
        into_base=how is None,
        **method,
    )
    peft: Peft = FullPeft() if how is None else LoraPeft(r=rank, lora_alpha=rank)
    plan = MergePlan(
        base_name="tiny",
        base_path=base,
        parents=tuple(parents),
        method=said,
        peft=peft,
        seed=seed,
        work_dir=work_dir,
        threads=1,
        contract=CONTRACT,
    )
    told = Told(directive)
    return merge.run(plan, told), told  # type: ignore[arg-type]  # as Link is


def weighted(parent: Parent, weight: float) -> Parent:
    return parent.model_copy(update={"weight": weight})


def deltas(base: Path, folder: Path) -> dict[str, torch.Tensor]:
    """What an adapter adds to each weight, as peft computes it when it merges."""
    model = load(base, folder)
    return {
        name: layer.get_delta_weight("default").detach().double()
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }


def total(base: Path, parents: list[Parent]) -> dict[str, torch.Tensor]:
    """The weighted sum of what the parents add."""
    whole: dict[str, torch.Tensor] = {}
    for parent in parents:
        for name, delta in deltas(base, parent.path).items():
            whole[name] = whole.get(name, torch.zeros_like(delta)) + parent.weight * delta
    return whole


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """||one - other|| / ||other||, over all layers."""
    assert one.keys() == other.keys()
    off = sum(float((one[name] - other[name]).norm()) ** 2 for name in one)
    return float((off / sum(float(delta.norm()) ** 2 for delta in other.values())) ** 0.5)
