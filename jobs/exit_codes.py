"""What `luthier attempt` ends with: a contract with what started it, such as a Kubernetes Job.

Whatever the code, the jobs table has decided: nobody reads it to learn what became of a job. It
says whether the same attempt may be started again: never. Another code is a crash: 1 of Python,
137 of a kill, mostly for lack of memory, 143 of a SIGTERM that came before anything was begun.
"""

from enum import IntEnum

from jobs.model import Job, Status


class Exit(IntEnum):
    DONE = 0  # the adapter is published
    FAILED = 10  # the job has failed by what it is: another attempt would end the same
    RETRYABLE = 11  # the attempt is over, and the job queued again: it was drained, or had bad luck
    STOPPED = 12  # cancelled or paused, as the client asked
    SUPERSEDED = 13  # not to be run: somebody else has this attempt, or a later one


_EXITS = {
    Status.SUCCEEDED: Exit.DONE,
    Status.FAILED: Exit.FAILED,
    Status.CANCELLED: Exit.STOPPED,
    Status.PAUSED: Exit.STOPPED,
    Status.QUEUED: Exit.RETRYABLE,
    Status.RUNNING: Exit.RETRYABLE,  # the table was away at the end; the lease will run out
}


def exit_of(job: Job, attempt: int) -> Exit:
    """How an attempt ended that has run, by what the table says of its job afterwards."""
    return _EXITS[job.status] if job.attempt == attempt else Exit.SUPERSEDED
