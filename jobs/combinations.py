"""What does not go together in a job: methods and kinds of PEFT, graders and training."""

from collections.abc import Iterator

from engine.graders import check
from jobs.errors import SpecProblem
from jobs.inputs import GRADER, grader_of
from jobs.model import JobSpec

HEAD = "a scalar head reads the base's own last layer, which virtual tokens would have to move"
SHARED = "its policy, value function and reference share one copy of the base as LoRA adapters"
# By method and kind of PEFT, why it does not take it.
REFUSED = {
    ("reward", "prompt_tuning"): HEAD,
    ("reward", "prefix_tuning"): HEAD,
    ("ppo", "full"): SHARED,
    ("ppo", "prompt_tuning"): SHARED,
    ("ppo", "prefix_tuning"): SHARED,
}
VIRTUAL = frozenset({"prompt_tuning", "prefix_tuning"})


def of_combination(spec: JobSpec) -> Iterator[SpecProblem]:
    method, peft = spec.method.type, spec.peft.type
    if (method, peft) in REFUSED:
        yield SpecProblem(
            "peft.type",
            "combination_unsupported",
            f"{method} does not take {peft}: {REFUSED[method, peft]}. Use lora.",
        )
    if getattr(spec.method, "packing", False) and peft in VIRTUAL:
        yield SpecProblem(
            "method.packing",
            "combination_unsupported",
            f"The virtual tokens of {peft} stand before a row once, so only the first of several "
            "examples in it would read them; set `method.packing` to false, or use lora.",
        )


def of_grader(spec: JobSpec) -> Iterator[SpecProblem]:
    """What is wrong with the grader that gives the reward, where there is one."""
    grader = grader_of(spec)
    if grader is None:
        return
    for problem in check(grader):
        yield SpecProblem(f"{GRADER}.{problem.field}", problem.code, problem.message)
