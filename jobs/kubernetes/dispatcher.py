"""Hands queued jobs to Kubernetes, an object an attempt, and watches over what becomes of them.

The table and the cluster are all it knows: a new dispatcher, or a second one, goes on where the
last one was. The pods claim their attempts, renew the leases and end the jobs themselves.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from jobs.errors import LeaseLost
from jobs.exit_codes import Exit
from jobs.kubernetes.cluster import (
    JOBS,
    PODS,
    TRAIN_JOBS,
    Cluster,
    ClusterRefused,
    Kind,
    KubernetesError,
    Object,
)
from jobs.kubernetes.manifest import ATTEMPT, JOB, QUEUE, Manifests, name_of
from jobs.kubernetes.pods import CAPACITY, cause_of, exit_codes, is_live, waits_for
from jobs.kubernetes.template import TemplateInvalid
from jobs.model import Job, Status
from jobs.settings import Settings
from jobs.store import Store

log = structlog.get_logger()

REST_S = 0.5  # between turns, however often it is woken
OVER_S = 30.0  # for a pod to end by itself, once its attempt is over or its client wants it to be
# What a pod ends with that did not begin, through no fault of the job's: SIGTERM came first.
UNBEGUN = frozenset({Exit.DONE, Exit.RETRYABLE, Exit.SUPERSEDED, 143})


@dataclass(frozen=True)
class Started:
    """An attempt's object in the cluster, with its pods."""

    kind: Kind
    object: Object
    pods: Sequence[Object]

    @property
    def name(self) -> str:
        return str(self.object["metadata"]["name"])

    @property
    def job_id(self) -> str:
        return str(self.object["metadata"]["labels"][JOB])

    @property
    def attempt(self) -> int:
        return int(self.object["metadata"]["labels"][ATTEMPT])

    @property
    def is_suspended(self) -> bool:
        return bool(self.object["spec"].get("suspend"))

    @property
    def is_leaving(self) -> bool:
        return "deletionTimestamp" in self.object["metadata"]

    @property
    def has_ended(self) -> bool:
        return any(
            condition["type"] in ("Complete", "Failed") and condition["status"] == "True"
            for condition in self.object.get("status", {}).get("conditions", ())
        )


class Dispatcher:
    def __init__(
        self, store: Store, cluster: Cluster, manifests: Manifests, *, over_s: float = OVER_S
    ) -> None:
        self._store, self._cluster, self._manifests = store, cluster, manifests
        self._settings: Settings = manifests.settings
        self._over_s = over_s
        self._over_since: dict[str, float] = {}

    def turn(self) -> None:
        """Look at everything once, and do what there is to do.

        Raises ClusterUnavailable and StoreUnavailable; the next turn sees the same again.
        """
        started = self._started()
        rows = self._store.dispatches.find({one.job_id for one in started})
        for one in started:
            with structlog.contextvars.bound_contextvars(job_id=one.job_id, attempt=one.attempt):
                self._attend(one, rows.get(one.job_id))
        names = {one.name for one in started}
        self._over_since = {n: since for n, since in self._over_since.items() if n in names}
        self._hand_over(names, sum(not one.has_ended for one in started))

    def _started(self) -> list[Started]:
        mine = f"{QUEUE}={self._settings.queue}"
        jobs = list(self._cluster.list(JOBS, mine))
        # After the Jobs: the pods of one that has ended are then seen with their exit codes.
        pods: dict[str, list[Object]] = {}
        for pod in self._cluster.list(PODS, mine):
            labels = pod["metadata"]["labels"]
            pods.setdefault(name_of(labels[JOB], int(labels[ATTEMPT])), []).append(pod)
        found = [Started(JOBS, made, pods.get(made["metadata"]["name"], [])) for made in jobs]
        if self._settings.max_nodes > 1:
            for made in self._cluster.list(TRAIN_JOBS, mine):
                its_pods = f"jobset.sigs.k8s.io/jobset-name={made['metadata']['name']}"
                found.append(Started(TRAIN_JOBS, made, list(self._cluster.list(PODS, its_pods))))
        return found

    # What was started

    def _attend(self, one: Started, job: Job | None) -> None:
        if one.is_leaving:
            return
        if job is not None and (job.status, job.attempt) == (Status.RUNNING, one.attempt):
            self._watch(one, job)
        elif job is not None and (job.status, job.attempt) == (Status.QUEUED, one.attempt - 1):
            self._await(one, job)
        elif not one.has_ended:
            self._end(one, "attempt.over")
        elif one.kind is TRAIN_JOBS:  # what has ended stays for its log; a Job knows until when
            self._forget(one)

    def _watch(self, one: Started, job: Job) -> None:
        """A running attempt: its pod says how it is, but not that it is no more."""
        if one.has_ended:
            error = cause_of(one.pods)
            log.warning("attempt.died", code=error.code, exit_codes=exit_codes(one.pods))
            try:
                self._store.leases.retry(job.id, one.attempt, error)
            except LeaseLost:
                return  # somebody else has said so already
        elif job.requested == "cancel":
            self._end(one, "attempt.cancelled")
        else:
            self._over_since.pop(one.name, None)

    def _await(self, one: Started, job: Job) -> None:
        """An attempt that nobody has claimed yet: what it waits for, or why nobody will."""
        if one.has_ended:
            self._unbegun(one, job)
        elif one.is_suspended:
            self._tell(one, f"{CAPACITY}: its queue has not admitted the attempt yet.")
        elif why := waits_for(one.pods):
            self._tell(one, why)

    def _unbegun(self, one: Started, job: Job) -> None:
        """It ended before it was claimed: charged, unless that was not its fault."""
        codes = exit_codes(one.pods)
        if not codes or set(codes) & UNBEGUN:
            log.warning("attempt.unbegun", exit_codes=codes)
            self._cluster.delete(one.kind, one.name)
            return
        error = cause_of(one.pods)
        log.warning("attempt.died", code=error.code, exit_codes=codes)
        claim = self._store.leases.claim_attempt(f"kubernetes/{one.name}", job.id, one.attempt)
        if claim is not None:
            self._store.leases.retry(job.id, one.attempt, error)

    def _tell(self, one: Started, message: str) -> None:
        if self._store.dispatches.tell(one.job_id, one.attempt, message):
            log.info("attempt.waits", message=message)

    def _end(self, one: Started, why: str) -> None:
        """Delete what should end by itself: at once where nothing runs, else after a while."""
        since = self._over_since.setdefault(one.name, time.monotonic())
        if any(map(is_live, one.pods)) and time.monotonic() - since < self._over_s:
            return
        log.warning("attempt.deleted", why=why)
        self._cluster.delete(one.kind, one.name)

    def _forget(self, one: Started) -> None:
        since = self._over_since.setdefault(one.name, time.monotonic())
        if time.monotonic() - since > self._settings.kubernetes_ttl_s:
            self._cluster.delete(one.kind, one.name)

    # What waits

    def _hand_over(self, names: set[str], live: int) -> None:
        """Start the next attempt of the best queued jobs, as many as there may be at once."""
        most = self._settings.kubernetes_max_jobs
        for job in self._store.dispatches.waiting(self._settings.queue, most):
            attempt = job.attempt + 1
            if live >= most:
                return
            if name_of(job.id, attempt) not in names:
                live += 1
                with structlog.contextvars.bound_contextvars(job_id=job.id, attempt=attempt):
                    self._start(job, attempt)

    def _start(self, job: Job, attempt: int) -> None:
        try:
            manifest = self._manifests.attempt(job, attempt)
            if self._cluster.create(manifest.kind, manifest.object):
                log.info("attempt.started", kind=manifest.kind.plural)
        except (ClusterRefused, TemplateInvalid) as error:
            log.error("attempt.refused", error=str(error))
            self._store.dispatches.tell(
                job.id, attempt, "The cluster refuses the attempt; the operator has to look."
            )


class DispatchLoop:
    """Gives a dispatcher its turns until `close`, in a thread: at every wake-up and in between."""

    def __init__(self, dispatcher: Dispatcher, *, every_s: float) -> None:
        self._dispatcher, self._every_s = dispatcher, every_s
        self._woken, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True, name="dispatcher")

    def start(self) -> None:
        self._thread.start()

    def wake(self, *_: Any) -> None:
        self._woken.set()

    def close(self) -> None:
        self._closing.set()
        self._woken.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._closing.is_set():
            try:
                self._dispatcher.turn()
            except KubernetesError as error:
                log.warning("dispatcher.cluster_unavailable", error=str(error))
            except Exception:  # without its turns nothing would ever run
                log.exception("dispatcher.failed")
            self._closing.wait(REST_S)
            self._woken.wait(self._every_s)
            self._woken.clear()
