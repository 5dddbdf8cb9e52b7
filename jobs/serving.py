"""What the configured generator could not serve: refused, or told, when a job is posted."""

from collections.abc import Iterator

from engine.spec import LoraPeft, LowRank
from jobs.errors import SpecProblem
from jobs.model import JobSpec

CODE = "generator_cannot_serve"
REWARD = (
    "This service generates through vLLM, which has no scores: the reward model can give ppo and "
    "grpo jobs their reward, but POST /score is refused."
)


def of_serving(spec: JobSpec, vllm_rank: int | None) -> Iterator[SpecProblem]:
    """Why vLLM could not serve a job's result. vllm_rank: its max_lora_rank; None: not vLLM.

    A reward model is not refused, whatever it is made of: other jobs learn from it.
    """
    if vllm_rank is None or spec.method.type == "reward":
        return
    peft = spec.peft
    if not isinstance(peft, LowRank):
        yield SpecProblem(
            "peft.type",
            CODE,
            f"This service generates through vLLM, which serves no {peft.type} result; use lora.",
        )
        return
    if isinstance(peft, LoraPeft) and peft.use_dora:
        yield SpecProblem(
            "peft.use_dora",
            CODE,
            "This service generates through vLLM, which serves no DoRA; leave `use_dora` out.",
        )
    if peft.r > vllm_rank:
        yield SpecProblem(
            "peft.r",
            CODE,
            f"This service generates through vLLM, which was started for ranks up to {vllm_rank}; "
            f"lower `peft.r` from {peft.r}.",
        )


def serving_warnings(spec: JobSpec, vllm_rank: int | None) -> tuple[str, ...]:
    """What a client should know of a job that is taken."""
    return (REWARD,) if vllm_rank is not None and spec.method.type == "reward" else ()


def of_merge_into_base(into_base: bool, vllm_rank: int | None) -> Iterator[SpecProblem]:
    """Why vLLM could not serve what is merged into its base."""
    if vllm_rank is not None and into_base:
        yield SpecProblem(
            "into_base",
            CODE,
            "This service generates through vLLM, which serves no model beside its base; merge "
            "the adapters into one adapter.",
        )
