"""The errors of the jobs room.

JobsError
├── NotFound            no such id for this tenant (a foreign id is the same as an unknown one)
├── Conflict            the object is not in a state that allows this
│   └── InUse           something still needs the object
├── IdempotencyReused   the key was used with another body
├── QuotaExceeded       the tenant has too much of this: jobs, bytes, tokens in a day
├── SpecInvalid         a job that could not run or be served, with every reason
├── LeaseLost           this attempt is no longer the owner; nothing it says counts
└── StoreUnavailable    the database does not answer
"""

from dataclasses import dataclass


class JobsError(Exception):
    pass


class NotFound(JobsError):
    def __init__(self, kind: str, id: str) -> None:
        super().__init__(f"No {kind} with id {id!r}.")
        self.kind, self.id = kind, id


class Conflict(JobsError):
    pass


class InUse(Conflict):
    pass


class IdempotencyReused(JobsError):
    pass


class QuotaExceeded(JobsError):
    """`passes` is false where waiting for moments does not help: clients should not try again."""

    def __init__(
        self, message: str, *, retry_after_s: float | None = None, passes: bool = True
    ) -> None:
        super().__init__(message)
        self.retry_after_s, self.passes = retry_after_s, passes


@dataclass(frozen=True)
class SpecProblem:
    """One reason why a job cannot run: where in the request, a code, and what to do about it."""

    param: str
    code: str
    message: str


class SpecInvalid(JobsError):
    def __init__(self, problems: list[SpecProblem]) -> None:
        super().__init__(" ".join(p.message for p in problems))
        self.problems = problems


class LeaseLost(JobsError):
    pass


class StoreUnavailable(JobsError):
    pass
