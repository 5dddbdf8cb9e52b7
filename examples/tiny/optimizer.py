"""Muon for the matrices (Jordan et al. 2024), AdamW for the embedding and the norms."""

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonal(stack: Tensor) -> Tensor:
    """[n, rows, cols] -> the nearest semi-orthogonal matrices, roughly, by five steps in bf16."""
    a, b, c = NEWTON_SCHULZ
    x = stack.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.transpose(1, 2) if tall else x).float()


class MixedOptimizer:
    """Keeps float32 masters of a bfloat16 network and copies them back after each step."""

    def __init__(
        self,
        network: nn.Module,
        muon_rate: float = 0.02,
        embed_rate: float = 0.01,
        norm_rate: float = 4e-3,
    ) -> None:
        self.muon_rate = muon_rate
        self.live = dict(network.named_parameters())
        self.masters = {name: p.detach().float().clone() for name, p in self.live.items()}
        groups: dict[tuple[int, ...], list[str]] = {}
        for name, p in self.live.items():
            if p.ndim == 2 and "embed" not in name:
                groups.setdefault(tuple(p.shape), []).append(name)
        self.stacks = list(groups.values())
        self.momenta = [
            torch.zeros(len(names), *self.live[names[0]].shape) for names in self.stacks
        ]
        matrices = {name for names in self.stacks for name in names}
        self.others = [name for name in self.live if name not in matrices]
        self.adam = torch.optim.AdamW(
            [
                {"params": [self.masters[name]], "full": rate}
                for name in self.others
                for rate in [embed_rate if "embed" in name else norm_rate]
            ],
            betas=(0.9, 0.98), weight_decay=0.0, fused=True,
        )  # fmt: skip

    def step(self, scale: float) -> None:
        """`scale`: the learning rate as a share of its highest."""
        for names, momentum in zip(self.stacks, self.momenta, strict=True):
            grads = torch.stack([self._grad(name) for name in names])
            momentum.lerp_(grads, 0.05)
            update = orthogonal(grads.lerp(momentum, 0.95))
            rate = scale * self.muon_rate * max(1.0, update.shape[1] / update.shape[2]) ** 0.5
            for name, change in zip(names, update, strict=True):
                self.masters[name].mul_(1 - 0.02 * scale * self.muon_rate).sub_(change, alpha=rate)
        for name in self.others:
            self.masters[name].grad = self._grad(name)
        for group in self.adam.param_groups:
            group["lr"] = scale * group["full"]
        self.adam.step()
        self._write_back()

    def _grad(self, name: str) -> Tensor:
        grad = self.live[name].grad
        assert grad is not None, name
        return grad.float()

    def _write_back(self) -> None:
        for name, p in self.live.items():
            p.data.copy_(self.masters[name])
            p.grad = None
