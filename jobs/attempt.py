"""One attempt under way: its inputs, its child, and what is written of it, fenced."""

import shutil
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from logging import getLevelName
from pathlib import Path

import structlog
from opentelemetry.trace import get_current_span
from prometheus_client import CollectorRegistry

from adapters import registry
from adapters.errors import AdapterCorrupt, AdapterInvalid, AdapterMissing
from adapters.manifest import Manifest
from engine.bases import BaseCatalogue, BaseModel, BaseUnusable
from engine.errors import EngineError
from engine.estimate.model import Device
from engine.graders import asking
from engine.plan import (
    Evaluated,
    Failed,
    Finished,
    GraderModel,
    Logged,
    Merged,
    Plan,
    Portion,
    Report,
    Saved,
    Started,
    Stepped,
    Stopped,
    TrainPlan,
    Warned,
)
from jobs.checkpoints import (
    CheckpointCorrupt,
    fetch_checkpoint,
    remove_checkpoint,
    store_checkpoint,
)
from jobs.errors import JobsError, LeaseLost, NotFound, StoreUnavailable
from jobs.expectation import Expectation
from jobs.inputs import INIT, REWARD, grader_of, inputs_of, names_adapter
from jobs.instruments import Instruments, Meter, unmetered
from jobs.journal import Journal
from jobs.keeper import LeaseKeeper
from jobs.launcher import Launcher, Running
from jobs.merge_plan import merge_plan
from jobs.mixture import share_of
from jobs.model import (
    Adapter,
    Claim,
    Dataset,
    Directive,
    JobError,
    JobSpec,
    MergeSpec,
    NewEvent,
    Progress,
)
from jobs.publishing import publish, unpublish
from jobs.spreading import spread_of
from jobs.store import Store
from jobs.tracing import fail, span
from storage.crash import crash_point
from storage.keys import dataset_source
from storage.objects import ObjectNotFound, ObjectStore, StorageError

log = structlog.get_logger()

POLL_S = 0.1
STOP_GRACE_S = 12.0  # a child that has not stopped for a cancel or before its first step is killed
KEPT_CHECKPOINTS = 2


@dataclass(frozen=True)
class Workshop:
    """What every attempt of a worker uses. `draining`, once set, makes it hand its job back.

    A child has `drain_s` for that, which covers the step in hand and its checkpoint; one that says
    nothing for `stall_s` is taken to hang, whatever its lease. `device` and
    `queue` say what kind of worker it is, for estimates. `generator_url` is the inference server's,
    for graders that ask a judge; an attempt waits `judge_patience_s` for one that is away. Of an
    attempt on several machines, `node` is this one's number and `master` where the first is met.
    """

    store: Store
    objects: ObjectStore
    bases: BaseCatalogue
    launcher: Launcher
    threads: int
    drain_s: float = 30.0
    stall_s: float = 1800.0
    device: Device = "cpu"
    queue: str = "default"
    generator_url: str = ""
    generator_key: str = field(default="", repr=False)
    judge_patience_s: float = 120.0
    instruments: Instruments = field(default_factory=lambda: Instruments(CollectorRegistry()))
    node: int = 0
    master: str = ""
    draining: threading.Event = field(default_factory=threading.Event)


class AttemptFailed(JobsError):
    """The attempt cannot go on; `retryable` when another one might."""

    def __init__(self, error: JobError, *, retryable: bool) -> None:
        super().__init__(error.message)
        self.error, self.retryable = error, retryable


class Attempt:
    """One attempt under way: the child, the lease, the journal, and the uploads beside them."""

    def __init__(
        self,
        shop: Workshop,
        claim: Claim,
        keeper: LeaseKeeper,
        work_dir: Path,
        meter: Meter | None = None,
    ) -> None:
        self._shop, self._claim, self._keeper = shop, claim, keeper
        self._work_dir, self._meter = work_dir, meter or unmetered()
        self._journal = Journal(shop.store.leases, claim.job)
        self._uploads: list[Future[None]] = []
        self._uploader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="upload")
        self._told: Directive = "continue"
        self._told_at = 0.0
        self._stepped = False
        self._expectation = Expectation(
            shop.store, shop.bases, claim, device=shop.device, queue=shop.queue
        )
        self._draining_at: float | None = None
        self._parents: tuple[Manifest, ...] = ()

    def run(self) -> None:
        try:
            with span("prepare"):
                self._clear_leftovers()
                plan = self._prepare()
            crash_point("inputs_fetched")
            with span("train", method=plan.method.type, peft=plan.peft.type):
                last = self._train(plan)
            self._end(last, plan.base_path)
        finally:
            self._expectation.close()
            self._uploader.shutdown(wait=True, cancel_futures=True)

    def _train(self, plan: Plan) -> Report:
        child = self._shop.launcher.start(plan)
        self._expectation.begin(plan)
        try:
            last = self._follow(child)
        finally:
            child.kill()
        self._meter.note(last)
        if isinstance(last, Failed):
            fail(get_current_span(), last.code)
        return last

    def share(self) -> bool:
        """Run this machine's part of an attempt whose first machine reports; whether it went well.

        Raises LeaseLost once the attempt is over.
        """
        plan = self._prepare()
        child = self._shop.launcher.start(plan)
        try:
            while not self._keeper.lost.is_set():
                try:
                    if isinstance(child.receive(POLL_S), Failed):
                        return False
                except EOFError:
                    return child.exit_code() == 0
        finally:
            child.kill()
            self._expectation.close()
            self._uploader.shutdown(wait=True)
        raise LeaseLost(f"Attempt {self._claim.job.attempt} is over.")

    # Before the child

    def _clear_leftovers(self) -> None:
        """Remove what earlier attempts may have stored of an adapter without getting to its row."""
        job = self._claim.job
        for attempt in range(1, job.attempt):
            unpublish(self._shop.objects, job.tenant_id, job.id, attempt)

    def _prepare(self) -> Plan:
        """Bring the inputs here, each checked, and write the plan."""
        spec, base = self._claim.job.spec, self._find_base()
        if isinstance(spec, MergeSpec):
            return self._prepare_merge(spec, base)
        return self._prepare_training(spec, base)

    def _find_base(self) -> BaseModel:
        job = self._claim.job
        try:
            base = self._shop.bases.find(job.spec.base_model, weights=True)
        except EngineError as error:
            raise _failure(_code_of_base(error), str(error)) from error
        if base.revision != job.base_revision:
            raise _failure(
                "base_model_changed",
                f"Base model {base.name!r} changed on the server since this job was posted; "
                "post it again.",
            )
        return base

    def _prepare_merge(self, spec: MergeSpec, base: BaseModel) -> Plan:
        fetched = []
        for number, adapter in enumerate(spec.method.adapters):
            folder = self._work_dir / f"parent-{number}"
            fetched.append((folder, self._fetch_into(folder, adapter.id)))
        self._parents = tuple(manifest for _, manifest in fetched)
        return merge_plan(spec, base, fetched, self._work_dir, threads=self._shop.threads)

    def _prepare_training(self, spec: JobSpec, base: BaseModel) -> Plan:
        if spec.resources.nodes > 1 and not self._shop.master:
            raise _failure(
                "nodes_unavailable",
                "This worker runs jobs on its own machine alone; ask the operator to have those on "
                "several run by Kubernetes, or leave `resources.nodes` out.",
            )
        portions = [
            self._fetch_rows(field, dataset, share_of(spec, field))
            for field, dataset in self._claim.datasets.items()
        ]
        first = next(iter(self._claim.datasets.values()))
        validation = portions.pop() if spec.validation is not None else None
        replay = portions.pop() if spec.replay is not None else None
        inputs = inputs_of(spec)
        return TrainPlan(
            base_name=base.name,
            base_path=base.path,
            dataset_path=portions[0].path,
            dataset_format=first.format,
            row_type=first.row_type,
            mixture=tuple(portions) if spec.mixture else (),
            replay=replay,
            validation=validation,
            method=spec.method,
            peft=spec.peft,
            seed=spec.seed,
            checkpoint_every=spec.checkpoint_every,
            work_dir=self._work_dir,
            resume_from=self._resume_from(),
            threads=self._shop.threads,
            init_from=self._fetch_adapter(inputs.get(INIT), "init"),
            reward_from=self._fetch_adapter(inputs.get(REWARD), "reward"),
            grader_models=self._grader_models(spec),
            generator_url=self._shop.generator_url,
            generator_key=self._shop.generator_key,
            judge_patience_s=self._shop.judge_patience_s,
            spread=spread_of(
                spec, base, self._shop.device, node=self._shop.node, master=self._shop.master
            ),
        )

    def _grader_models(self, spec: JobSpec) -> dict[str, GraderModel]:
        """What the job's grader asks, by the names that it has in the grader."""
        names = dict.fromkeys(part.model for _, part in asking(grader_of(spec)))
        try:
            return {
                name: self._grader_model(name, f"grader-{number}")
                for number, name in enumerate(names)
            }
        except EngineError as error:
            raise _failure(_code_of_base(error), str(error)) from error

    def _grader_model(self, name: str, folder: str) -> GraderModel:
        """Raises BaseNotAllowed and BaseUnusable."""
        if not names_adapter(name):
            return GraderModel(base_path=self._shop.bases.find(name).path)
        try:
            adapter = self._shop.store.adapters.get(self._claim.job.tenant_id, name)
        except NotFound as error:
            raise _gone(name) from error
        return GraderModel(
            base_path=self._shop.bases.find(adapter.base_model).path,
            contract=adapter.manifest["contract"],
            folder=self._fetch_adapter(name, folder) if adapter.kind == "reward" else None,
        )

    def _fetch_rows(self, field: str, dataset: Dataset, share: float) -> Portion:
        path = self._work_dir / f"{field}.{dataset.format}"
        key = dataset_source(self._claim.job.tenant_id, dataset.id)
        if self._shop.objects.get_file(key, path) != dataset.sha256:
            raise _failure("dataset_corrupt", f"Dataset {dataset.id} is damaged; upload it again.")
        return Portion(dataset_id=dataset.id, path=path, format=dataset.format, share=share)

    def _fetch_adapter(self, adapter_id: str | None, name: str) -> Path | None:
        """The folder of an adapter that the job starts from, every file checked."""
        if adapter_id is None:
            return None
        folder = self._work_dir / name
        self._fetch_into(folder, adapter_id)
        return folder

    def _fetch_into(self, folder: Path, adapter_id: str) -> Manifest:
        tenant_id = self._claim.job.tenant_id
        try:
            return registry.fetch(self._shop.objects, tenant_id, adapter_id, folder)
        except AdapterMissing as error:
            raise _gone(adapter_id) from error
        except AdapterCorrupt as error:
            raise _failure("adapter_corrupt", f"{error}.") from error

    def _resume_from(self) -> Path | None:
        checkpoint = self._claim.checkpoint
        if checkpoint is None:
            return None
        job, leases, objects = self._claim.job, self._shop.store.leases, self._shop.objects
        try:
            return fetch_checkpoint(objects, job.tenant_id, checkpoint, self._work_dir / "resume")
        except (CheckpointCorrupt, ObjectNotFound):
            leases.forget_checkpoint(job.id, job.attempt, checkpoint.id)
            raise

    # Beside the child

    def _follow(self, child: Running) -> Report:
        """Pass on reports and directives until the child has said its last word."""
        heard_at = time.monotonic()
        while True:
            if self._keeper.lost.is_set():
                raise LeaseLost(f"Attempt {self._claim.job.attempt} has lost its lease.")
            self._pass_on(child)
            if self._overdue():
                return Stopped(directive="cancel" if self._told == "cancel" else "pause")
            try:
                report = child.receive(POLL_S)
            except EOFError:
                return _crash(child.exit_code())
            if report is not None:
                heard_at = time.monotonic()
            elif time.monotonic() - heard_at > self._shop.stall_s:
                return _stalled(self._shop.stall_s)
            if isinstance(report, Finished | Stopped | Failed):
                return report
            if report is not None:
                self._note(report)
            self._tell_of_uploads()
            self._journal.flush_when_due()

    def _pass_on(self, child: Running) -> None:
        """Tell the child once what is wanted."""
        wanted = self._wanted()
        if wanted != "continue" and wanted != self._told:
            child.tell(wanted)
            self._told, self._told_at = wanted, time.monotonic()

    def _overdue(self) -> bool:
        """Whether the child has had its time to stop.

        Only a client's pause waits for any step but the first: until then there is nothing to keep.
        """
        unbegun = self._told == self._keeper.directive == "pause" and not self._stepped
        if self._told == "cancel" or unbegun:
            return time.monotonic() - self._told_at > STOP_GRACE_S
        if not self._shop.draining.is_set():
            return False
        self._draining_at = self._draining_at or time.monotonic()
        return time.monotonic() - self._draining_at > self._shop.drain_s

    def _wanted(self) -> Directive:
        if self._keeper.directive != "continue":
            return self._keeper.directive
        return "pause" if self._shop.draining.is_set() else "continue"

    def _note(self, report: Report) -> None:
        self._meter.note(report)
        match report:
            case Logged():
                log.log(getLevelName(report.level.upper()), report.event, **report.fields)
            case Started():
                get_current_span().add_event("started", {"luthier.step": report.resumed_step})
                self._expectation.note(report)
                self._journal.add(_started(report), _before_first(report))
            case Stepped():
                if not self._stepped:
                    get_current_span().add_event("first step", {"luthier.step": report.step})
                self._stepped = True
                self._journal.step(report)
                crash_point("stepped")
            case Evaluated():
                self._journal.add(_evaluated(report))
            case Warned():
                self._journal.add(NewEvent(type="message", level="warn", message=report.message))
            case Merged():
                self._journal.add(_merged(report))
            case Saved():
                upload = copy_context().run  # so that its lines and spans have the attempt's ids
                self._uploads.append(self._uploader.submit(upload, self._upload, report))

    def _upload(self, saved: Saved) -> None:
        """Store a checkpoint, make it count, and let go of those that nobody needs any more."""
        job, leases, objects = self._claim.job, self._shop.store.leases, self._shop.objects
        with span("checkpoint", step=saved.step), self._shop.instruments.storing_checkpoint():
            checkpoint = store_checkpoint(objects, job, saved.step, saved.path, saved.metrics)
            crash_point("checkpoint_uploaded")
            shutil.rmtree(saved.path, ignore_errors=True)
            self._keeper.insist(lambda: leases.add_checkpoint(checkpoint))
        try:
            for old in leases.drop_checkpoints(job.id, job.attempt, keep=KEPT_CHECKPOINTS):
                remove_checkpoint(objects, job.tenant_id, old)
        except (StorageError, StoreUnavailable) as error:
            log.warning("checkpoint.not_removed", error=str(error))

    def _tell_of_uploads(self, *, wait: bool = False) -> None:
        """Warn of checkpoints that could not be stored; an earlier one, or none, has to do."""
        while self._uploads and (wait or self._uploads[0].done()):
            try:
                self._uploads.pop(0).result()
            except (StorageError, StoreUnavailable, OSError) as error:
                log.warning("checkpoint.failed", error=str(error))
                message = "A checkpoint could not be stored; the job goes on without it."
                self._journal.add(NewEvent(type="message", level="warn", message=message))

    # After the child

    def _publish(self, finished: Finished, base_path: Path) -> None:
        """Store the adapter, then write its row; without the row it must not be there either."""
        job, objects = self._claim.job, self._shop.objects
        try:
            adapter = publish(objects, self._claim, finished, base_path, parents=self._parents)
        except AdapterInvalid as error:
            raise _failure(error.code, f"The result cannot be served: {error}.") from error
        crash_point("manifest_written")
        actual = self._expectation.actual(finished)
        try:
            self._keeper.insist(
                lambda: self._shop.store.leases.succeed(
                    job.id, job.attempt, adapter, finished.training_s, actual
                )
            )
        except LeaseLost:
            if not self._has_row(adapter):
                unpublish(objects, job.tenant_id, job.id, job.attempt)
                raise
        crash_point("row_finished")
        self._meter.end("succeeded")
        log.info("job.succeeded", adapter_id=adapter.id)

    def _has_row(self, adapter: Adapter) -> bool:
        """True where the row was written, but the database's answer got lost."""
        try:
            self._shop.store.adapters.get(adapter.tenant_id, adapter.id)
        except NotFound:
            return False
        return True

    def _end(self, last: Report, base_path: Path) -> None:
        job, leases, keeper = self._claim.job, self._shop.store.leases, self._keeper
        cancelled = last == Stopped(directive="cancel")
        self._tell_of_uploads(wait=not cancelled)
        keeper.insist(self._journal.flush)
        match last:
            case Finished():
                with span("publish"), self._shop.instruments.publishing():
                    self._publish(last, base_path)
            case Stopped(directive="cancel"):
                keeper.insist(lambda: leases.cancelled(job.id, job.attempt))
                self._meter.end("cancelled")
                log.info("job.cancelled")
            case Stopped():
                status = keeper.insist(lambda: leases.release(job.id, job.attempt))
                self._meter.end("released")
                log.info("job.released", status=status)
            case Failed():
                error = JobError(code=last.code, message=last.message)
                raise AttemptFailed(error, retryable=last.retryable)


def _started(report: Started) -> NewEvent:
    resumed = f", from step {report.resumed_step}" if report.resumed_step else ""
    return NewEvent(
        type="message",
        message=f"training {report.trainable_parameters:,} parameters on {report.rows:,} rows"
        f"{resumed}",
        data=report.model_dump(exclude={"type"}),
    )


def _evaluated(report: Evaluated) -> NewEvent:
    loss = report.metrics.get("eval_loss")
    message = f"evaluation at step {report.step}" + ("" if loss is None else f", loss {loss:.4f}")
    return NewEvent(type="metrics", message=message, data={"step": report.step, **report.metrics})


def _merged(report: Merged) -> NewEvent:
    of = "1 adapter" if report.adapters == 1 else f"{report.adapters} adapters"
    return NewEvent(
        type="message",
        message=f"merged {of}, relative error of the weights {report.error:.2e}",
        data=report.model_dump(exclude={"type"}),
    )


def _before_first(report: Started) -> Progress:
    return Progress(step=report.resumed_step, total_steps=report.total_steps)


def _gone(adapter_id: str) -> AttemptFailed:
    return _failure(
        "adapter_missing",
        f"Adapter {adapter_id}, which this job starts from, is gone; post the job with another "
        "one.",
    )


def _code_of_base(error: EngineError) -> str:
    return error.code if isinstance(error, BaseUnusable) else BaseUnusable.code


def _failure(code: str, message: str) -> AttemptFailed:
    return AttemptFailed(JobError(code=code, message=message), retryable=False)


def _stalled(stall_s: float) -> Failed:
    """A child that hangs would keep its lease for ever: the lease is its worker's to renew."""
    message = f"The trainer said nothing for {stall_s:g} s, so it was ended."
    return Failed(code="trainer_stalled", message=message, retryable=True)


def _crash(exit_code: int | None) -> Failed:
    """The child ended without a word: killed (often by the kernel, out of memory) or crashed."""
    code, message = "trainer_crashed", f"The trainer crashed (exit code {exit_code})."
    if exit_code == -9:
        code = "out_of_memory"
        message = (
            "The trainer was killed, most often for lack of memory; lower "
            "`method.per_device_batch_size` or `method.max_length`."
        )
    return Failed(code=code, message=message, retryable=True)
