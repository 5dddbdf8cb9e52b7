"""The GPUs of this machine or pod, as Prometheus metrics, through NVIDIA's management library.

NVML makes no CUDA context: a worker may ask it and still fork children that use the GPU.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple, Protocol

import structlog
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from jobs.settings import NVIDIA_DRIVER

log = structlog.get_logger()


class Gpu(NamedTuple):
    """`busy_ratio` is the share of the last moments in which a kernel ran; None: it cannot say."""

    number: int
    name: str
    memory_used_bytes: int
    memory_total_bytes: int
    busy_ratio: float | None


class Gpus(Protocol):
    def read(self) -> Sequence[Gpu]:
        """Every GPU as it is now; none where the driver does not answer."""
        ...


class NoGpus:
    """A machine without one."""

    def read(self) -> Sequence[Gpu]:
        return ()


class NvmlGpus:
    """Raises ImportError without nvidia-ml-py, and pynvml.NVMLError without a driver."""

    def __init__(self) -> None:
        import pynvml

        self._nvml = pynvml
        pynvml.nvmlInit()

    def read(self) -> Sequence[Gpu]:
        with suppress(self._nvml.NVMLError):
            return [self._gpu(index) for index in range(self._nvml.nvmlDeviceGetCount())]
        return ()

    def _gpu(self, index: int) -> Gpu:
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        busy_ratio = None
        with suppress(nvml.NVMLError):  # not said of a slice of a GPU
            busy_ratio = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
        name = nvml.nvmlDeviceGetName(handle)
        return Gpu(index, str(name), int(memory.used), int(memory.total), busy_ratio)


def open_gpus() -> Gpus:
    """What this machine has; asks nothing where there is no driver."""
    if not NVIDIA_DRIVER.exists():
        return NoGpus()
    try:
        return NvmlGpus()
    except Exception as error:  # the library's own, or none: numbers for a graph are missing
        log.warning("gpu.not_measured", error=type(error).__name__, install="nvidia-ml-py")
        return NoGpus()


class GpuCollector(Collector):
    def __init__(self, gpus: Gpus) -> None:
        self._gpus = gpus

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return _families(())

    def collect(self) -> Iterable[GaugeMetricFamily]:
        return _families(self._gpus.read())


def _families(gpus: Sequence[Gpu]) -> list[GaugeMetricFamily]:
    used = GaugeMetricFamily(
        "luthier_gpu_memory_used_bytes", "Memory in use on a GPU.", labels=["gpu", "name"]
    )
    total = GaugeMetricFamily(
        "luthier_gpu_memory_size_bytes", "Memory that a GPU has.", labels=["gpu", "name"]
    )
    busy = GaugeMetricFamily(
        "luthier_gpu_busy_ratio",
        "The share of the last moments in which a kernel ran on a GPU, 0 to 1.",
        labels=["gpu", "name"],
    )
    for gpu in gpus:
        labels = [str(gpu.number), gpu.name]
        used.add_metric(labels, gpu.memory_used_bytes)
        total.add_metric(labels, gpu.memory_total_bytes)
        if gpu.busy_ratio is not None:
            busy.add_metric(labels, gpu.busy_ratio)
    return [used, total, busy]
