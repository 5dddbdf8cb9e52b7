"""What an attempt's pods tell: what it waits for, or what it died of."""

import re
from collections.abc import Iterable, Sequence
from itertools import chain

from jobs.exit_codes import Exit
from jobs.kubernetes.cluster import Object
from jobs.kubernetes.template import CONTAINER
from jobs.model import JobError

NODE = "node"  # what the container is called in Kubeflow's runtimes
CAPACITY = "Waiting for capacity"
IMAGE = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
CONFIG = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
OUT_OF_MEMORY = JobError(
    code="out_of_memory",
    message="The attempt's pod was killed for lack of memory; lower "
    "`method.per_device_batch_size` or `method.max_length`.",
)


def waits_for(pods: Iterable[Object]) -> str | None:
    """Why an attempt has not begun, in a client's words; None: it has, or there is no reason yet.

    Names of machines and images are the operator's, and for the log alone.
    """
    for pod in pods:
        status = pod.get("status", {})
        if status.get("phase") != "Pending":
            continue
        for condition in status.get("conditions", ()):
            if condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable":
                lacking = sorted(set(re.findall(r"Insufficient ([\w./-]+)", condition["message"])))
                what = f" no machine has enough {', '.join(map(_plain, lacking))} free"
                return f"{CAPACITY}:{what if lacking else ' no machine takes the attempt now'}."
        for reason in _waiting_reasons(pod):
            if reason in IMAGE:
                return f"The attempt's image does not come ({reason}); the operator has to look."
            if reason in CONFIG:
                return f"The attempt's pod does not start ({reason}); the operator has to look."
    return None


def cause_of(pods: Sequence[Object]) -> JobError:
    """What an attempt died of without a word in the table."""
    if any(_out_of_memory(pod) for pod in pods):
        return OUT_OF_MEMORY
    codes = [code for code in exit_codes(pods) if code != Exit.SUPERSEDED]
    how = f"ended with exit code {codes[-1]}" if codes else "is gone: its machine failed, or left"
    return JobError(code="worker_lost", message=f"The attempt's pod {how}.")


def exit_codes(pods: Iterable[Object]) -> list[int]:
    """Of the trainers that have ended, in the order of their pods."""
    states = (_state(pod).get("terminated") for pod in pods)
    return [int(state["exitCode"]) for state in states if state]


def is_live(pod: Object) -> bool:
    """Whether it may be running something."""
    return pod.get("status", {}).get("phase") not in ("Succeeded", "Failed", "Pending")


def _out_of_memory(pod: Object) -> bool:
    ended = _state(pod).get("terminated") or {}
    return ended.get("reason") == "OOMKilled" or ended.get("exitCode") == 137


def _state(pod: Object) -> Object:
    for container in pod.get("status", {}).get("containerStatuses", ()):
        if container["name"] in (CONTAINER, NODE):
            found: Object = container.get("state", {})
            return found
    return {}


def _waiting_reasons(pod: Object) -> Iterable[str]:
    status = pod.get("status", {})
    containers = (status.get(kind, ()) for kind in ("initContainerStatuses", "containerStatuses"))
    for container in chain(*containers):
        yield (container.get("state", {}).get("waiting") or {}).get("reason", "")


def _plain(resource: str) -> str:
    return "GPUs" if resource.startswith("nvidia.com/") else resource.rstrip(".")
