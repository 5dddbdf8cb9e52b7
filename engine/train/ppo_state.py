"""What a PPO run needs to go on as if it had not been stopped: weights, optimizer, randomness."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import get_scheduler

from engine.plan import Saved, TrainPlan
from engine.spec import PpoMethod
from engine.train.actor_critic import ActorCritic
from engine.train.start import POLICY

TENSORS, FIGURES = "ppo_state.safetensors", "ppo_state.json"


class PpoState:
    """`step` is how many were made; `kl_coef` is the penalty's, which may adapt."""

    def __init__(
        self, actor: ActorCritic, method: PpoMethod, plan: TrainPlan, total_steps: int
    ) -> None:
        self._actor, self._method, self._plan = actor, method, plan
        self._trained = actor.trained()
        self._optimizer = torch.optim.AdamW(
            [parameter for _, parameter in self._trained],
            lr=method.learning_rate,
            weight_decay=method.weight_decay,
        )
        self._scheduler = get_scheduler(
            method.lr_scheduler_type,
            self._optimizer,
            num_warmup_steps=round(method.warmup_ratio * total_steps),
            num_training_steps=total_steps,
        )
        self.step, self.kl_coef, self._loss = 0, method.kl_coef, 0.0

    @property
    def mean_loss(self) -> float:
        return self._loss / max(1, self.step)

    def update(self) -> dict[str, float]:
        """One step of the optimizer with the gradients that were added up."""
        parameters = [parameter for _, parameter in self._trained]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self._method.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return {"grad_norm": norm.item(), "learning_rate": self._scheduler.get_last_lr()[0]}

    def count(self, loss: float) -> None:
        """A batch of answers was learned from."""
        self.step, self._loss = self.step + 1, self._loss + loss
        self._scheduler.step()

    def save(self, metrics: dict[str, float]) -> Saved:
        """Write a checkpoint: the policy as an adapter, and beside it everything else."""
        folder = self._plan.work_dir / "checkpoints" / f"checkpoint-{self.step}"
        self._actor.switch.use(POLICY)
        self._actor.model.save_pretrained(folder, selected_adapters=[POLICY])
        (folder / "README.md").unlink(missing_ok=True)
        save_file(self._tensors(), folder / TENSORS)
        figures = {"step": self.step, "kl_coef": self.kl_coef, "loss": self._loss}
        text = json.dumps(figures | {"scheduler": self._scheduler.state_dict()})
        (folder / FIGURES).write_text(text)
        return Saved(step=self.step, path=folder, metrics=metrics)

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint."""
        tensors = load_file(folder / TENSORS)
        figures = json.loads((folder / FIGURES).read_text())
        self.step, self.kl_coef = figures["step"], figures["kl_coef"]
        self._loss = figures["loss"]
        self._scheduler.load_state_dict(figures["scheduler"])
        for name, parameter in self._trained:
            parameter.data.copy_(tensors[f"weights/{name}"])
            kept = {"exp_avg", "exp_avg_sq", "step"}
            self._optimizer.state[parameter] = {
                key: _on(tensors[f"{key}/{name}"], parameter, key) for key in kept
            }
        for group in self._optimizer.param_groups:
            group["lr"] = self._scheduler.get_last_lr()[0]
        torch.set_rng_state(tensors["rng/cpu"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["rng/cuda"])

    def _tensors(self) -> dict[str, Tensor]:
        found = {f"weights/{name}": p.detach().contiguous() for name, p in self._trained}
        for name, parameter in self._trained:
            for key, tensor in self._optimizer.state[parameter].items():
                found[f"{key}/{name}"] = tensor
        found["rng/cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            found["rng/cuda"] = torch.cuda.get_rng_state()
        return found


def _on(tensor: Tensor, parameter: Tensor, key: str) -> Tensor:
    """The optimizer keeps its step counts on the CPU."""
    return tensor if key == "step" else tensor.to(parameter.device)
