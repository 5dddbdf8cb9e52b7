"""An estimate as it is kept and sent, and what the run then came to."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Device = Literal["cpu", "cuda"]


class Figures(BaseModel):
    """Frozen, and refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class MemoryPart(Figures):
    """Bytes at the worst moment, and what they were taken from."""

    bytes: int
    basis: str


class Estimate(Figures):
    """What a job will take. Lengths and counts are in tokens, memory in bytes, time in seconds.

    `rows` are the dataset's; `trained_rows` those that are learned from, without what is left out
    (`left_out`, of which `fully_masked` have no loss within max_length) and held out. `tokens` and
    `trained_tokens` are of one pass over them; `sampled_tokens` is the most that the policy writes
    itself in the whole run. `packed_rows` is how many rows the examples share, where they are
    packed. `memory` has the parts; those that are not needed at the same moment
    do not add up to `peak_memory_bytes`. `seconds` is None where nothing is known of the workers.
    `basis` says of a figure where it is from.
    """

    rows: int
    counted_rows: int
    trained_rows: int
    held_out_rows: int
    left_out: int
    fully_masked: int
    truncated: int
    longest: int
    tokens: int
    trained_tokens: int
    sampled_tokens: int
    steps: int
    packed_rows: int | None = None
    trainable_parameters: int
    memory: dict[str, MemoryPart]
    peak_memory_bytes: int
    token_passes: int
    modelled_seconds: float
    seconds: float | None
    seconds_from: Literal["earlier_jobs", "model"] | None
    basis: dict[str, str]
    warnings: tuple[str, ...] = ()


class Actual(Figures):
    """What a run came to, in the estimate's words; of several attempts, what the last one did.

    `first_step` is how many steps earlier attempts had made.
    """

    trained_rows: int | None = None
    trained_tokens: int | None = None
    trainable_parameters: int | None = None
    steps: int | None = None
    first_step: int = 0
    seconds: float | None = None
    peak_memory_bytes: int | None = None


class Earlier(Figures):
    """A finished job like this one: how long it took, and how long the model says it takes."""

    seconds: float
    modelled_seconds: float
