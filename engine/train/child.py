"""The training child: one attempt in a process of its own, forked from a preloaded server.

A crash, an out-of-memory kill or a segfault here ends this attempt and nothing else.
"""

import os
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch
from transformers.utils import logging as transformers_logging

from engine.errors import EngineError
from engine.plan import (
    PLAN,
    PROCESS_LOST,
    Failed,
    Finished,
    Logged,
    MergePlan,
    Plan,
    Spread,
    Stopped,
    TrainPlan,
)
from engine.train import dpo, grpo, kto, merge, orpo, ppo, reward, sft, spread
from engine.train.errors import ShareDone, StopRequested, TrainingFailed
from engine.train.link import Link

MAX_CAUSES = 8
METHODS: dict[str, Callable[[TrainPlan, Link], Finished]] = {
    "sft": sft.train,
    "reward": reward.train,
    "ppo": ppo.train,
    "dpo": dpo.train,
    "grpo": grpo.train,
    "orpo": orpo.train,
    "kto": kto.train,
}


def main(connection: Connection, plan_json: str) -> None:
    """Run the plan and report its end, whatever it is, over the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the runner decides when this process stops
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    plan = PLAN.validate_json(plan_json)
    shared = plan.spread if isinstance(plan, TrainPlan) else Spread()
    link = Link(connection, first=shared.rank == 0)
    if getattr(getattr(plan, "peft", None), "type", None) != "qlora":
        # peft would import it for a look at each layer, which takes a second.
        sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
    _quiet()
    torch.set_num_threads(max(1, plan.threads // shared.processes))
    torch.use_deterministic_algorithms(True, warn_only=True)
    link.log("trainer.started", pid=os.getpid(), method=plan.method.type, peft=plan.peft.type)
    try:
        spread.join(shared, plan.work_dir)
        finished = _finished(plan, link)
        link.log("trainer.finished", pid=os.getpid(), training_s=round(finished.training_s, 3))
        metrics = finished.metrics | {"peak_memory_bytes": peak_memory_bytes()}
        link.send(finished.model_copy(update={"metrics": metrics}))
    except ShareDone:
        return
    except StopRequested as stop:
        link.send(Stopped(directive=stop.directive))
    except TrainingFailed as error:
        link.send(Failed(code=error.code, message=str(error), retryable=error.retryable))
    except EngineError as error:
        link.send(Failed(code="training_failed", message=str(error)))
    except Exception as error:  # the edge: a shortage, or a fault of ours or of a library
        link.send(_fault(error))
        link.send(_failure(error))


def _finished(plan: Plan, link: Link) -> Finished:
    if isinstance(plan, MergePlan):
        return merge.run(plan, link)
    return METHODS[plan.method.type](plan, link)


def peak_memory_bytes() -> float:
    """The most memory this process has held: of the GPU where there is one, else of the machine."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def _failure(error: Exception) -> Failed:
    text = str(error)
    if spread.is_cut_off(error):
        message = "Another process of this run ended, so the attempt was over."
        return Failed(code=PROCESS_LOST, message=message, retryable=True)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text:
        message = (
            "Out of memory; lower `method.per_device_batch_size` or `method.max_length`, or set "
            "`method.gradient_checkpointing`."
        )
        return Failed(code="out_of_memory", message=message)
    if "No space left on device" in text:
        message = "The worker's disk is full; the operator has to make room on it."
        return Failed(code="disk_full", message=message, retryable=True)
    return Failed(code="internal_error", message=f"{type(error).__name__}: {text}")


def _fault(error: BaseException) -> Logged:
    """Its classes and places. Its text, and that of its causes, may quote a client's rows."""
    kinds: list[str] = []
    where: list[str] = []
    link: BaseException | None = error
    while link is not None and len(kinds) < MAX_CAUSES:
        kinds.append(type(link).__name__)
        frames = traceback.extract_tb(link.__traceback__)[-6:]
        where += [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        link = link.__cause__ or link.__context__
    fields = {"pid": os.getpid(), "error": " <- ".join(kinds), "where": where}
    return Logged(event="trainer.fault", level="error", fields=fields)


def _quiet() -> None:
    """No progress bars and no notices to library authors: the client reads events, not stderr."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    warnings.simplefilter("ignore", FutureWarning)
    warnings.filterwarnings("ignore", message="Position ids are not supported for parameter")
