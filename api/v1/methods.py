"""Methods in OpenAI's words and in ours: what a client asks for, and what a job's row is shown as.

`supervised` is `sft`, `reinforcement` is `grpo`, `dpo` is `dpo`; every other method goes by its own
name. A method's settings stand in a block of its name. There `hyperparameters` are OpenAI's, and
whatever else the method takes stands beside them as in POST /jobs.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError

from api.envelope import Body, Wire
from api.errors import plain
from api.fields import field_path
from engine.spec import AUTO, GrpoMethod, Method, Resources, Training
from jobs.errors import SpecInvalid, SpecProblem

OURS = {"supervised": "sft", "reinforcement": "grpo"}
THEIRS = {ours: theirs for theirs, ours in OURS.items()}
# Where a client of OpenAI's leaves something open, it is "auto", as there.
OPEN_BY_DEFAULT = frozenset({"supervised", "dpo", "reinforcement"})
AUTO_FIELDS = ("num_train_epochs", "per_device_batch_size", "learning_rate", "warmup_ratio")
ONLINE = frozenset({"grpo", "ppo"})
LONGEST, LONGEST_HALF = 4096, 512
GENERATIONS = 8  # of a prompt, at a compute_multiplier of 1
ROWS_AT_ONCE = 16  # a larger batch is made of several that fit in memory

# Which of our fields one of OpenAI's hyperparameters sets.
FIELDS = {
    "n_epochs": "num_train_epochs",
    "batch_size": "per_device_batch_size",
    "learning_rate_multiplier": "learning_rate_multiplier",
    "beta": "beta",
    "compute_multiplier": "num_generations",
}
NO_EVALS = (
    "Here the held-out rows of a reinforcement job are looked at before and after training, not in "
    'between: leave it out or give "auto", and name a `validation_file`.'
)
NO_EFFORT = (
    "The base models of this server do not know levels of reasoning effort: leave it out, and "
    "bound answers with `max_completion_length` instead."
)


class Hyperparameters(Body):
    """OpenAI's, where they are numbers. The rate is the "auto" one times the multiplier."""

    n_epochs: int | None = Field(None, ge=1, le=1000)
    batch_size: int | None = Field(None, ge=1, le=4096)
    learning_rate_multiplier: float | None = Field(None, gt=0, le=100)


class DpoHyperparameters(Hyperparameters):
    beta: float | None = Field(None, gt=0, le=100)


class ReinforcementHyperparameters(Hyperparameters):
    """`compute_multiplier` times 8 is how many answers each prompt gets."""

    compute_multiplier: float | None = Field(None, ge=0.25, le=128)
    eval_interval: int | None = None
    eval_samples: int | None = None
    reasoning_effort: Literal["default", "low", "medium", "high"] | None = None


KINDS: dict[str, type[Hyperparameters]] = {
    "dpo": DpoHyperparameters,
    "grpo": ReinforcementHyperparameters,
}


class HyperparametersView(Wire):
    """As the job runs with them: of what was "auto", the number that was found."""

    n_epochs: int | float
    batch_size: int
    learning_rate_multiplier: float | None


def ours(type: str, block: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The method as POST /jobs takes it. Raises SpecInvalid with what is wrong with the block.

    `place` is where the block is in the request; empty: it has hyperparameters alone.
    """
    name = OURS.get(type, type)
    within = ".".join(filter(None, (place, "hyperparameters")))
    given = hyperparameters_of(name, block.get("hyperparameters"), within)
    beside = {key: value for key, value in block.items() if key != "hyperparameters"}
    if "type" in beside:
        raise SpecInvalid([_unknown(f"{place}.type")])
    said = _numbers(name, given, beside)
    if twice := sorted(said.keys() & beside.keys()):
        problem = f"{place}.{twice[0]} is said in `hyperparameters` too; say it once."
        raise SpecInvalid([SpecProblem(f"{place}.{twice[0]}", "invalid_request", problem)])
    method = {"type": name, **beside, **said}
    if type in OPEN_BY_DEFAULT:
        for field in AUTO_FIELDS:
            method.setdefault(field, AUTO)
    return method


def bounded(method: Mapping[str, Any], room: int) -> dict[str, int]:
    """What OpenAI's clients do not say of lengths, in tokens: as long as there is room."""
    if method["type"] not in ONLINE:
        return {"max_length": min(room, LONGEST)} if "max_length" not in method else {}
    halves = dict.fromkeys(("max_length", "max_completion_length"), min(room // 2, LONGEST_HALF))
    return halves if not halves.keys() & method.keys() else {}


def hyperparameters_of(name: str, given: Any, place: str) -> dict[str, Any]:
    """Those that were given: numbers, or "auto". Raises SpecInvalid."""
    kind = KINDS.get(name, Hyperparameters)
    open_ones: dict[str, Any] = {}
    if isinstance(given, dict):
        named = kind.model_fields.keys() - {"reasoning_effort"}
        open_ones = {key: AUTO for key, value in given.items() if key in named and value == AUTO}
        given = {key: value for key, value in given.items() if key not in open_ones}
    try:
        asked = kind.model_validate({} if given is None else given)
    except ValidationError as error:
        raise SpecInvalid([*problems_of(error, place)]) from None
    numbers = asked.model_dump(exclude_none=True)
    if refused := [*_without_meaning(numbers, place)]:
        raise SpecInvalid(refused)
    return numbers | open_ones


def _without_meaning(numbers: Mapping[str, Any], place: str) -> Iterator[SpecProblem]:
    code = "hyperparameter_unsupported"
    for name in ("eval_interval", "eval_samples"):
        if name in numbers:
            yield SpecProblem(f"{place}.{name}", code, NO_EVALS)
    if numbers.get("reasoning_effort", "default") != "default":
        yield SpecProblem(f"{place}.reasoning_effort", code, NO_EFFORT)


def _numbers(name: str, given: Mapping[str, Any], beside: Mapping[str, Any]) -> dict[str, Any]:
    """What hyperparameters set of a method's fields."""
    numbers: dict[str, Any] = {}
    if (epochs := given.get("n_epochs")) is not None:
        numbers["num_train_epochs"] = epochs
    if (beta := given.get("beta", AUTO)) != AUTO:
        numbers["beta"] = beta
    if (compute := given.get("compute_multiplier", AUTO)) != AUTO:
        numbers["num_generations"] = max(2, round(GENERATIONS * compute))
    if (multiplier := given.get("learning_rate_multiplier")) is not None:
        numbers["learning_rate"] = AUTO
        if multiplier != AUTO:
            numbers["learning_rate_multiplier"] = multiplier
    if (batch := given.get("batch_size")) == AUTO:
        numbers["per_device_batch_size"] = AUTO
    elif batch is not None:
        generations = numbers.get("num_generations", beside.get("num_generations", GENERATIONS))
        each = generations if name == "grpo" and type(generations) is int else 1
        numbers |= _batch(batch * each)
    return numbers


def _batch(rows: int) -> dict[str, int]:
    """So many rows a step, as few at once as fit in memory."""
    at_once = max(n for n in range(1, ROWS_AT_ONCE + 1) if rows % n == 0)
    return {
        "per_device_batch_size": at_once,
        "gradient_accumulation_steps": rows // at_once,
    }


def numbers_of(method: Training, resources: Resources) -> HyperparametersView:
    """A job's method in OpenAI's three numbers."""
    rows = method.per_device_batch_size * method.gradient_accumulation_steps * resources.processes
    each = method.num_generations if isinstance(method, GrpoMethod) else 1
    epochs = method.num_train_epochs
    found = "learning_rate" in method.auto
    return HyperparametersView(
        n_epochs=int(epochs) if epochs.is_integer() else epochs,
        batch_size=max(1, rows // each),
        learning_rate_multiplier=method.learning_rate_multiplier if found else None,
    )


def theirs(method: Method, resources: Resources) -> dict[str, Any]:
    """A job's method in OpenAI's words where there are some, with all else beside them."""
    type = THEIRS.get(method.type, method.type)
    hyperparameters: dict[str, Any] = numbers_of(method, resources).model_dump()
    if method.type == "dpo":
        hyperparameters["beta"] = method.beta
    if isinstance(method, GrpoMethod):
        hyperparameters["compute_multiplier"] = method.num_generations / GENERATIONS
    whole = method.model_dump(mode="json", exclude={"type", "auto"}, exclude_none=True)
    block = {k: v for k, v in whole.items() if k not in FIELDS.values()}
    if method.type != "dpo" and "beta" in whole:
        block["beta"] = whole["beta"]
    return {"type": type, type: {"hyperparameters": hyperparameters, **block}}


def problems_of(error: ValidationError, place: str = "") -> Iterator[SpecProblem]:
    """Each with its place in the request."""
    for one in error.errors():
        path = field_path(one["loc"], one["type"])
        where = ".".join(filter(None, (place, path)))
        if one["type"] == "extra_forbidden":
            yield _unknown(where)
        else:
            yield SpecProblem(where, "invalid_request", f"{where}: {plain(one)}")


def _unknown(where: str) -> SpecProblem:
    text = f"{where}: There is no such field; remove it or check its spelling."
    return SpecProblem(where, "unknown_field", text)
