"""GPUs as metrics. No test machine has one: the numbers come from a list, the names are real."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, generate_latest

from jobs.gpus import Gpu, GpuCollector, NoGpus, open_gpus
from jobs.settings import NVIDIA_DRIVER


class TwoGpus:
    def read(self) -> Sequence[Gpu]:
        whole = Gpu(0, "NVIDIA H100", 40 << 30, 80 << 30, 0.75)
        return [whole, Gpu(1, "NVIDIA H100 MIG 1g.10gb", 1 << 30, 10 << 30, None)]


def test_each_gpu_shows_its_memory_and_how_busy_it_is() -> None:
    registry = CollectorRegistry()
    registry.register(GpuCollector(TwoGpus()))

    def value(name: str, gpu: str, model: str) -> float | None:
        return registry.get_sample_value(f"luthier_gpu_{name}", {"gpu": gpu, "name": model})

    assert value("memory_used_bytes", "0", "NVIDIA H100") == 40 << 30
    assert value("memory_size_bytes", "0", "NVIDIA H100") == 80 << 30
    assert value("busy_ratio", "0", "NVIDIA H100") == 0.75
    assert value("memory_used_bytes", "1", "NVIDIA H100 MIG 1g.10gb") == 1 << 30
    assert value("busy_ratio", "1", "NVIDIA H100 MIG 1g.10gb") is None


def test_a_machine_without_gpus_shows_none() -> None:
    registry = CollectorRegistry()
    registry.register(GpuCollector(NoGpus()))
    lines = generate_latest(registry).decode().splitlines()
    assert [line for line in lines if not line.startswith("#")] == []


def test_what_this_machine_has_is_asked_of_its_driver() -> None:
    assert bool(open_gpus().read()) == NVIDIA_DRIVER.exists()
