"""What a job is expected to take, worked out beside its attempt, and what the attempt came to."""

from concurrent.futures import Future, ThreadPoolExecutor

import structlog

from engine.bases import BaseCatalogue
from engine.errors import EngineError
from engine.estimate.model import Actual, Device
from engine.plan import Finished, Plan, Started, TrainPlan
from engine.render import load_renderer
from jobs.errors import JobsError, LeaseLost
from jobs.estimating import estimate_job
from jobs.model import Claim, JobSpec
from jobs.store import Store

log = structlog.get_logger()


class Expectation:
    """The estimate is made in a thread of its own: training does not wait for it."""

    def __init__(
        self, store: Store, bases: BaseCatalogue, claim: Claim, *, device: Device, queue: str
    ) -> None:
        self._store, self._bases, self._claim = store, bases, claim
        self._device, self._queue = device, queue
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="estimate")
        self._pending: Future[None] | None = None
        self._started: Started | None = None

    def begin(self, plan: Plan) -> None:
        """Once a job: a later attempt finds the estimate of the first. A merge has none."""
        job = self._claim.job
        if not isinstance(plan, TrainPlan) or job.estimate is not None:
            return
        assert isinstance(job.spec, JobSpec)
        self._pending = self._thread.submit(self._make, plan, job.spec)

    def note(self, started: Started) -> None:
        self._started = started

    def actual(self, finished: Finished) -> Actual:
        """What the run came to, once the estimate is there to stand beside it."""
        if self._pending is not None and (error := self._pending.exception()):
            log.error(
                "job.not_estimated", exc_info=error
            )  # a fault of ours: the result is not lost
        started, metrics = self._started, finished.metrics
        return Actual(
            trained_rows=started.rows if started else None,
            trained_tokens=started.trained_tokens if started else None,
            trainable_parameters=started.trainable_parameters if started else None,
            first_step=started.resumed_step if started else 0,
            steps=_whole(metrics.get("steps")),
            seconds=finished.training_s,
            peak_memory_bytes=_whole(metrics.get("peak_memory_bytes")),
        )

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _make(self, plan: TrainPlan, spec: JobSpec) -> None:
        """A job goes on without an estimate; the log says why it has none."""
        job = self._claim.job
        try:
            estimate = estimate_job(
                self._store,
                job.tenant_id,
                spec,
                self._bases.find(spec.base_model, weights=True),
                [
                    (field, dataset, path)
                    for (field, dataset), path in zip(
                        self._claim.datasets.items(), plan.row_paths, strict=True
                    )
                ],
                load_renderer(plan.base_path),
                queue=self._queue,
                device=self._device,
                threads=plan.threads,
            )
            self._store.leases.note_estimate(job.id, job.attempt, estimate)
        except LeaseLost:
            return
        except (EngineError, JobsError, OSError) as error:
            log.warning("job.not_estimated", error=str(error))


def _whole(figure: float | None) -> int | None:
    return None if figure is None else round(figure)
