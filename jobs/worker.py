"""The worker role: listens for wake-ups, runs attempts (or has a cluster run them), sweeps, and
drains on SIGTERM.
"""

import fcntl
import os
import secrets
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import CollectorRegistry

from engine.bases import BaseCatalogue
from jobs.attempt import Workshop
from jobs.collecting import Collecting
from jobs.errors import StoreUnavailable
from jobs.exit_codes import Exit, exit_of
from jobs.follower import follow
from jobs.instruments import Instruments
from jobs.kubernetes.cluster import Cluster
from jobs.kubernetes.dispatcher import Dispatcher, DispatchLoop
from jobs.kubernetes.manifest import Manifests
from jobs.kubernetes.template import read_template
from jobs.launcher import Launcher, LocalLauncher
from jobs.opening import open_objects, open_store
from jobs.queue import BrokerWakeUps, listen, open_broker
from jobs.runner import Runner
from jobs.settings import Settings
from jobs.signals import asked_to_stop
from jobs.store import Store
from jobs.sweep import Sweep
from storage.crash import arm, crash_point
from storage.objects import ObjectStore

log = structlog.get_logger()

EMBEDDED_WAKE_S = 0.1


def run(
    settings: Settings,
    launcher: Launcher | None = None,
    registry: CollectorRegistry | None = None,
) -> None:
    """Work until SIGTERM or SIGINT; then hand back the job in hand, checkpointed, and return.

    What it measures is in the `registry`.
    """
    arm(settings.crash_at)
    registry = registry or CollectorRegistry()
    instruments = Instruments(registry, queue=settings.queue)
    with asked_to_stop() as stop:
        if settings.launcher == "kubernetes":
            _dispatch_until(stop, settings, instruments)
        else:
            _work_until(stop, settings, launcher or LocalLauncher(), registry, instruments)


def _work_until(
    stop: threading.Event,
    settings: Settings,
    launcher: Launcher,
    registry: CollectorRegistry,
    instruments: Instruments,
) -> None:
    launcher.warm_up()
    store = open_store(settings)
    with work_folder(settings.data_dir / "work") as (owner, work_root):
        shop = workshop(settings, store, launcher, registry, instruments=instruments)
        runner = Runner(
            shop,
            owner=owner,
            work_root=work_root,
            heartbeat_s=settings.heartbeat_s,
            lease_s=settings.lease_s,
        )
        objects = shop.objects
        with _woken(settings, store, objects, instruments, lambda: _work(runner, settings.queue)):
            log.info("worker.started", owner=owner, queue=settings.queue)
            stop.wait()
            log.info("worker.draining")
            shop.draining.set()
    store.close()
    log.info("worker.stopped")


def _dispatch_until(stop: threading.Event, settings: Settings, instruments: Instruments) -> None:
    """Have a cluster run the attempts; they go on without this process."""
    assert settings.kubernetes_pod_template is not None
    manifests = Manifests(settings, read_template(settings.kubernetes_pod_template))
    cluster = Cluster(settings.kubernetes_url, settings.kubernetes_namespace)
    store = open_store(settings)
    loop = DispatchLoop(Dispatcher(store, cluster, manifests), every_s=settings.heartbeat_s)
    with _woken(settings, store, open_objects(settings), instruments, loop.wake):
        loop.start()
        log.info("dispatcher.started", namespace=cluster.namespace, queue=settings.queue)
        stop.wait()
        loop.close()
    cluster.close()
    store.close()
    log.info("worker.stopped")


def run_attempt(
    settings: Settings,
    job_id: str,
    number: int,
    *,
    node: int = 0,
    master: str = "",
    launcher: Launcher | None = None,
    registry: CollectorRegistry | None = None,
) -> Exit:
    """Run one attempt of one job to its end, or this machine's share of it, and say how it ended.

    On SIGTERM the job is handed back, checkpointed.
    """
    launcher, registry = launcher or LocalLauncher(), registry or CollectorRegistry()
    instruments = Instruments(registry, queue=settings.queue)
    timing = {"heartbeat_s": settings.heartbeat_s, "lease_s": settings.lease_s}
    with asked_to_stop() as stop:  # to the last: what this process exits with is a contract
        store = open_store(settings)
        more = {"draining": stop, "node": node, "master": master, "instruments": instruments}
        with work_folder(settings.data_dir / "work") as (owner, work_root):
            shop = workshop(settings, store, launcher, registry, **more)
            if node > 0:
                return follow(shop, job_id, number, work_root=work_root, **timing)
            runner = Runner(shop, owner=owner, work_root=work_root, **timing)
            ran = runner.run_attempt(job_id, number)
        if not ran:
            return Exit.RETRYABLE if stop.is_set() else Exit.SUPERSEDED
        return _end_of(store, job_id, number)


def _end_of(store: Store, job_id: str, number: int) -> Exit:
    """How an attempt ended that was run here."""
    try:
        job = store.dispatches.find([job_id]).get(job_id)
    except StoreUnavailable:
        return Exit.RETRYABLE
    end = Exit.SUPERSEDED if job is None else exit_of(job, number)
    log.info("attempt.ended", job_id=job_id, attempt=number, end=end.name.lower())
    return end


def workshop(
    settings: Settings,
    store: Store,
    launcher: Launcher,
    registry: CollectorRegistry | None = None,
    **more: Any,
) -> Workshop:
    """What the attempts of this process are given."""
    return Workshop(
        store=store,
        objects=open_objects(settings, registry),
        bases=BaseCatalogue(settings.base_models),
        launcher=launcher,
        threads=settings.threads,
        device=settings.device,
        queue=settings.queue,
        generator_url=settings.inference,
        generator_key=settings.inference_key,
        judge_patience_s=settings.judge_patience_s,
        stall_s=settings.stall_s,
        drain_s=settings.drain_s / 2,  # the rest is for the upload of its checkpoint
        **more,
    )


@contextmanager
def _woken(
    settings: Settings,
    store: Store,
    objects: ObjectStore,
    instruments: Instruments,
    work: Callable[[], None],
) -> Iterator[None]:
    """`work` is called at every wake-up; the table is swept, and what nobody names is collected.

    At the end `work` has returned.
    """
    broker = open_broker(settings.broker_url)
    worker = listen(broker, settings.queue, work)
    sweep = Sweep(
        store,
        BrokerWakeUps(broker),
        settings.queue,
        expire_s=settings.sweep_s,
        wake_s=EMBEDDED_WAKE_S if settings.embedded else settings.sweep_s,
        instruments=instruments,
    )
    collecting = Collecting(
        store,
        objects,
        every_s=settings.collect_s,
        orphan_s=settings.orphan_s,
        checkpoint_days=settings.checkpoint_days,
    )
    worker.start()
    sweep.start()
    collecting.start()
    try:
        yield
    finally:
        sweep.close()
        collecting.close()
        worker.stop(timeout=int(settings.drain_s * 1000))


def _work(runner: Runner, queue: str) -> None:
    """Run jobs until none is left. A wake-up never fails: the table keeps what it was about."""
    try:
        while runner.run_next(queue):
            crash_point("before_ack")
    except StoreUnavailable as error:
        log.warning("worker.store_unavailable", error=str(error))
    except Exception:
        # The edge of a message: the lease of whatever was in hand runs out and the sweep takes it.
        log.exception("worker.failed")


@contextmanager
def work_folder(root: Path) -> Iterator[tuple[str, Path]]:
    """A worker's name and its folder, and an end to the folders of workers that died.

    A folder is alive while its owner holds the lock on the file in it. Workers that start together
    look and make theirs one after another, or one would take another's new folder for a dead one.
    """
    root.mkdir(parents=True, exist_ok=True)
    owner = f"{socket.gethostname()[:80]}-{os.getpid()}-{secrets.token_hex(4)}"
    mine = root / owner
    with root.with_suffix(".lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        for folder in root.iterdir():
            _remove_if_dead(folder)
        mine.mkdir()
        lock = (mine / "lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
    with lock:
        try:
            yield owner, mine
        finally:
            shutil.rmtree(mine, ignore_errors=True)


def _remove_if_dead(folder: Path) -> None:
    try:
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    except (FileNotFoundError, BlockingIOError):
        return  # being made or removed, or alive
