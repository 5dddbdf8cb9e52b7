"""The worker role: listens for wake-ups, runs attempts, sweeps, and drains on SIGTERM."""

import fcntl
import os
import secrets
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import structlog

from engine.bases import BaseCatalogue
from jobs.attempt import Workshop
from jobs.collecting import Collecting
from jobs.errors import StoreUnavailable
from jobs.launcher import Launcher, LocalLauncher
from jobs.opening import open_objects, open_store
from jobs.queue import BrokerWakeUps, listen, open_broker
from jobs.runner import Runner
from jobs.settings import Settings
from jobs.sweep import Sweep
from storage.crash import arm, crash_point

log = structlog.get_logger()

EMBEDDED_WAKE_S = 0.1


def run(settings: Settings, launcher: Launcher | None = None) -> None:
    """Work until SIGTERM or SIGINT; then hand back the job in hand, checkpointed, and return."""
    arm(settings.crash_at)
    launcher = launcher or LocalLauncher()
    stop = _stop_on_signals()
    launcher.warm_up()
    store = open_store(settings)
    broker = open_broker(settings.broker_url)
    with work_folder(settings.data_dir / "work") as (owner, work_root):
        shop = Workshop(
            store=store,
            objects=open_objects(settings),
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
        )
        runner = Runner(
            shop,
            owner=owner,
            work_root=work_root,
            heartbeat_s=settings.heartbeat_s,
            lease_s=settings.lease_s,
        )
        worker = listen(broker, settings.queue, lambda: _work(runner, settings.queue))
        sweep = Sweep(
            store,
            BrokerWakeUps(broker),
            settings.queue,
            expire_s=settings.sweep_s,
            wake_s=EMBEDDED_WAKE_S if settings.embedded else settings.sweep_s,
        )
        collecting = Collecting(
            store,
            shop.objects,
            every_s=settings.collect_s,
            orphan_s=settings.orphan_s,
            checkpoint_days=settings.checkpoint_days,
        )
        worker.start()
        sweep.start()
        collecting.start()
        log.info("worker.started", owner=owner, queue=settings.queue)
        stop.wait()
        log.info("worker.draining")
        shop.draining.set()
        sweep.close()
        collecting.close()
        worker.stop(timeout=int(settings.drain_s * 1000))
    store.close()
    log.info("worker.stopped")


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


def _stop_on_signals() -> threading.Event:
    stop = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, ask)
    return stop


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
