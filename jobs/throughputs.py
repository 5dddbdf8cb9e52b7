"""How long finished jobs took against the model of their time; of any tenant, without content."""

import sqlalchemy as sa

from engine.estimate.model import Actual, Earlier
from jobs.database import Database
from jobs.model import Job, JobSpec, new_id
from jobs.tables import jobs, now, throughputs

LOOKED_AT = 9  # the newest: workers and libraries change


class Throughputs:
    def __init__(self, database: Database) -> None:
        self._db = database

    def earlier(self, queue: str, spec: JobSpec) -> tuple[Earlier, ...]:
        """The newest finished jobs of one queue on the same base, with the same method and peft."""
        query = (
            sa.select(throughputs.c.seconds, throughputs.c.modelled_seconds)
            .where(
                throughputs.c.queue == queue,
                throughputs.c.base_model == spec.base_model,
                throughputs.c.method == spec.method.type,
                throughputs.c.peft == spec.peft.type,
            )
            .order_by(throughputs.c.created_at.desc(), throughputs.c.id)
            .limit(LOOKED_AT)
        )
        with self._db.read() as connection:
            rows = connection.execute(query).mappings()
            return tuple(Earlier.model_validate(dict(row)) for row in rows)


def insert_throughput(connection: sa.Connection, job: Job, actual: Actual) -> None:
    """Keep what a job took, where it was estimated and has made steps, in the caller's transaction.

    A run that was resumed, or ended early, counts for the share of the steps that it made.
    """
    expected, made = job.estimate, (actual.steps or 0) - actual.first_step
    if isinstance(job.spec, JobSpec) and job.spec.resources.processes > 1:
        return  # of so many GPUs together, and speaks of no single one
    if expected is None or not actual.seconds or made <= 0 or not expected.modelled_seconds:
        return
    share = made / expected.steps
    queue = sa.select(jobs.c.queue).where(jobs.c.id == job.id).scalar_subquery()
    values = {
        "id": new_id("tp"),
        "queue": queue,
        "base_model": job.spec.base_model,
        "method": job.spec.method.type,
        "peft": job.spec.peft.type,
        "token_passes": round(expected.token_passes * share),
        "seconds": actual.seconds,
        "modelled_seconds": expected.modelled_seconds * share,
        "created_at": now(),
    }
    connection.execute(throughputs.insert().values(values))
