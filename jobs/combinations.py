"""What does not go together in a job: methods and kinds of PEFT, graders and training."""

from collections.abc import Iterator

from engine.graders import Grader, check
from engine.graders.label_model import LabelModel
from engine.graders.multi import Multi
from engine.graders.score_model import ScoreModel
from jobs.errors import SpecProblem
from jobs.model import JobSpec

HEAD = "its scalar head reads the base's own last layer, which virtual tokens would have to move"
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
    grader: Grader | None = getattr(spec.method, "grader", None)
    if grader is None:
        return
    for problem in check(grader):
        yield SpecProblem(f"method.grader.{problem.field}", problem.code, problem.message)
    if _asks(grader):
        yield SpecProblem(
            "method.grader",
            "grader_asks_a_model",
            "A trainer has no other model to ask, so score_model and label_model give no reward "
            "there; train a reward model, and name it as `method.reward_model`.",
        )


def _asks(grader: Grader) -> bool:
    if isinstance(grader, Multi):
        return any(map(_asks, grader.graders.values()))
    return isinstance(grader, ScoreModel | LabelModel)
