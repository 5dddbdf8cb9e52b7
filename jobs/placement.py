"""Which class of workers takes a job: one that has as many GPUs as it asks for."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from engine.spec import Resources
from jobs.errors import SpecProblem
from jobs.model import JobSpec

# Why a method, or a kind of PEFT, is not spread over several processes.
ALONE = {
    "ppo": "its answers, scores and updates take turns in one process",
    "grpo": "its groups of answers are sampled and compared in one process",
    "kto": "its KL term is estimated from the rows that share a batch, which would be others",
    "prompt_tuning": "there is next to nothing to share: only a few rows of numbers are trained",
    "prefix_tuning": "there is next to nothing to share: only a few rows of numbers are trained",
}
SHARDED = frozenset({"sft"})  # methods of which a full fine-tuning is shared out


@dataclass(frozen=True)
class Placement:
    """GPUs on a machine of each class of workers (a class is a queue), and machines at most.

    A class that is not named has 1. Jobs go to `queue` where it has enough.
    """

    queue: str = "default"
    gpus: Mapping[str, int] = field(default_factory=dict)
    max_nodes: int = 1

    def alone(self) -> "Placement":
        """The same with no class but `queue`."""
        return replace(self, gpus={self.queue: self.gpus.get(self.queue, 1)})

    def queue_for(self, resources: Resources) -> str | None:
        """The default class or the smallest one that has enough GPUs; None: there is none."""
        if self.gpus.get(self.queue, 1) >= resources.gpus:
            return self.queue
        enough = [(gpus, name) for name, gpus in self.gpus.items() if gpus >= resources.gpus]
        return min(enough)[1] if enough else None

    @property
    def most_gpus(self) -> int:
        return max(self.gpus.get(self.queue, 1), *self.gpus.values(), 1)


def of_resources(spec: JobSpec, placement: Placement) -> Iterator[SpecProblem]:
    """Why a job cannot run on what it asks for."""
    wanted = spec.resources
    if placement.queue_for(wanted) is None:
        yield SpecProblem(
            "resources.gpus",
            "too_many_gpus",
            f"No class of workers has {wanted.gpus} GPUs on a machine; ask for "
            f"{placement.most_gpus} at most.",
        )
    if wanted.nodes > placement.max_nodes:
        yield SpecProblem(
            "resources.nodes",
            "too_many_nodes",
            f"This server runs a job on {placement.max_nodes} machines at most; lower "
            f"`resources.nodes` from {wanted.nodes}.",
        )
    if wanted.processes > 1:
        yield from _of_spreading(spec)


def _of_spreading(spec: JobSpec) -> Iterator[SpecProblem]:
    method, peft = spec.method.type, spec.peft.type
    for where, name in (("method.type", method), ("peft.type", peft)):
        if name in ALONE:
            text = f"{name} runs on one GPU: {ALONE[name]}. Leave `resources` out."
            yield SpecProblem(where, "cannot_be_spread", text)
    if peft == "full" and method not in SHARDED and method not in ALONE:
        yield SpecProblem(
            "peft.type",
            "cannot_be_spread",
            f"A full fine-tuning by {method} runs on one GPU, since its weights are not shared out "
            "yet; use lora, or leave `resources` out.",
        )
