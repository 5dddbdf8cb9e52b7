"""Every knob of the service, read once from the environment (LUTHIER_*) at the entry points."""

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AliasChoices,
    Field,
    IPvAnyNetwork,
    SecretStr,
    StringConstraints,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from engine.bases import is_local, is_pinned
from jobs.placement import Placement

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
REPO = Path(__file__).resolve().parent.parent
ClassName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_-]{1,32}$")]


class Settings(BaseSettings):
    """One instance, built at an entry point and handed down; nothing else reads the environment."""

    model_config = SettingsConfigDict(
        env_prefix="LUTHIER_", frozen=True, extra="ignore", populate_by_name=True
    )

    data_dir: Path = Field(
        Path(".luthier"), description="database, objects and caches of one machine"
    )
    database_url: str = Field("", description="SQLAlchemy URL; empty: SQLite in data_dir")
    broker_url: str = Field("", description="redis://...; empty: in-process, fed by the sweep")
    storage_url: str = Field("", description="s3://bucket/prefix; empty: a folder in data_dir")
    s3_endpoint_url: str | None = None
    s3_region: str | None = None
    s3_access_key: str | None = None
    s3_secret_key: SecretStr | None = None
    s3_timeout_s: float = Field(10.0, gt=0, description="for the next bytes, before another try")

    host: str = "127.0.0.1"
    port: int = 8321
    inference_host: str = "127.0.0.1"
    inference_port: int = 8322
    inference_url: str = Field("", description="empty: inference_host and inference_port")
    generator: Literal["luthier", "vllm"] = Field(
        "luthier", description="what generates: Luthier's own inference server, or vLLM"
    )
    vllm_url: str = Field("", description="http://host:port, where the generator is vllm")
    vllm_api_key: SecretStr | None = Field(None, description="vLLM's --api-key, where it has one")
    vllm_max_lora_rank: int = Field(16, ge=1, description="vLLM's --max-lora-rank")
    pepper: SecretStr = Field(
        SecretStr(""), description="keys the hashes of API keys; empty: a file"
    )

    base_models: dict[str, str] = Field(
        default_factory=lambda: {"luthier-tiny": str(REPO / "examples/models/luthier-tiny")},
        description="the allow-list: public name -> local folder, or Hugging Face id@commit",
    )
    max_lora_rank: int = Field(64, ge=1)
    qlora: bool | None = Field(
        None, description="whether workers can quantize; empty: as this machine, by its packages"
    )
    train_device: Literal["cpu", "cuda"] | None = Field(
        None, description="what workers train on, for estimates; empty: as this machine"
    )
    max_upload_bytes: int = Field(1 << 30, ge=1)
    # Defaults for every tenant; `luthier quota set` gives one its own. 0 is no limit.
    max_queued_jobs: int = Field(1000, ge=0, description="queued or running")
    max_running_jobs: int = Field(0, ge=0, description="at once, over all workers")
    max_stored_bytes: int = Field(0, ge=0, description="of datasets and adapters")
    max_tokens_per_day: int = Field(0, ge=0, description="read and written by /generate and others")
    reads_per_minute: int = Field(600, ge=0)
    writes_per_minute: int = Field(60, ge=0)
    generations_per_minute: int = Field(600, ge=0)
    unverified_per_minute: int = Field(
        60, ge=0, description="requests without a valid key, by address; above it they get a 429"
    )
    webhook_networks: tuple[IPvAnyNetwork, ...] = Field(
        (), description="that webhooks may go to though they are not public, by http too"
    )
    webhook_retry_s: float = Field(
        72 * 3600.0, gt=0, description="how long a webhook that does not arrive is tried"
    )
    public_docs: bool = Field(True, description="/docs and /openapi.json without a key")

    queue: str = Field("default", pattern=r"^[a-z0-9-]{1,32}$", description="the GPU class")
    worker_gpus: dict[str, int] = Field(
        default_factory=dict,
        description="GPUs on a machine of each class of workers; one that is not named has 1",
    )
    max_nodes: int = Field(1, ge=1, description="machines of one job; above 1 needs kubernetes")
    launcher: Literal["local", "kubernetes"] = Field(
        "local", description="where attempts run: beside the worker, or each as a Kubernetes Job"
    )
    kubernetes_url: str = Field("", description="the API server; empty: of the pod's own cluster")
    kubernetes_namespace: str = Field("", description="of the attempts; empty: the pod's own")
    kubernetes_pod_template: Path | None = Field(
        None, description="YAML, a PodTemplateSpec with a container `trainer`, from a ConfigMap"
    )
    kubernetes_local_queue: str = Field("", description="Kueue's LocalQueue that admits attempts")
    kubernetes_runtime: str = Field(
        "luthier", description="Kubeflow's ClusterTrainingRuntime of jobs on several machines"
    )
    kubernetes_max_jobs: int = Field(100, ge=1, description="attempts handed over at once")
    kubernetes_ttl_s: int = Field(3600, ge=60, description="how long an ended attempt's Job stays")

    lease_s: float = Field(30.0, gt=0)
    heartbeat_s: float = Field(2.0, gt=0)
    sweep_s: float = Field(5.0, gt=0)
    max_attempts: int = Field(3, ge=1)
    judge_patience_s: float = Field(
        120.0, ge=0, description="an attempt's wait for an inference server that is away"
    )
    drain_s: float = Field(60.0, gt=0, description="SIGTERM to a released job, at most")

    stall_s: float = Field(
        1800.0, gt=0, description="a trainer that says nothing for so long is ended, and retried"
    )
    collect_s: float = Field(
        6 * 3600.0, gt=0, description="how often a worker looks for files that nothing names"
    )
    orphan_s: float = Field(
        24 * 3600.0, gt=0, description="files that nothing names are removed when so old"
    )
    checkpoint_days: float = Field(
        30.0, gt=0, description="how long the checkpoints of a job that has ended are kept"
    )
    crash_at: str = Field(
        "", description="for tests alone: where in the code a worker kills itself"
    )

    train_threads: int = Field(0, ge=0, description="0: every core")
    inference_threads: int = Field(0, ge=0, description="0: half the cores, at least one")
    inference_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="what the base is served in; auto: bfloat16 on a GPU alone"
    )
    inference_max_running: int = Field(32, ge=1, description="sequences in the batch, at most")
    inference_max_waiting: int = Field(256, ge=0, description="and so many more before a 429")
    inference_kv_bytes: int = Field(
        0, ge=0, description="attention state; 0: half of what a GPU has free, 2 GiB on a CPU"
    )
    inference_lora_bytes: int = Field(
        4 << 30, ge=0, description="the LoRAs of the batch's rows, all of its highest rank"
    )
    inference_max_resident: int = Field(64, ge=1, description="adapters in memory, at most")
    inference_resident_bytes: int = Field(4 << 30, ge=0, description="of the adapters in memory")
    adapter_cache_bytes: int = Field(10 << 30, ge=0)
    log_format: Literal["console", "json"] = "console"

    metrics_host: str = "127.0.0.1"
    metrics_port: int = Field(
        8323, ge=0, le=65_500, description="each process takes the first free one from here; 0: any"
    )
    tenant_classes: dict[str, ClassName] = Field(
        default_factory=dict, description="tenant's name -> its class in the metrics"
    )
    otlp_endpoint: str = Field(
        "",
        validation_alias=AliasChoices("LUTHIER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
        description="http://collector:4318, where traces go; empty: nowhere",
    )

    @field_validator("base_models")
    @classmethod
    def _pinned(cls, models: dict[str, str]) -> dict[str, str]:
        for name, source in models.items():
            if not is_local(source) and not is_pinned(source):
                raise ValueError(
                    f"{name}: {source!r} is no folder here, and no Hugging Face model with the "
                    "commit that it is pinned to, such as org/name@ and 40 hex digits"
                )
        return models

    @model_validator(mode="after")
    def _heartbeat_within_lease(self) -> "Settings":
        if self.heartbeat_s * 2 > self.lease_s:
            raise ValueError("heartbeat_s must be at most half of lease_s, or leases lapse in time")
        return self

    @model_validator(mode="after")
    def _names_vllm(self) -> "Settings":
        if self.generator == "vllm" and not self.vllm_url:
            raise ValueError("generator vllm needs vllm_url, such as http://127.0.0.1:8000")
        return self

    @model_validator(mode="after")
    def _names_a_pod_template(self) -> "Settings":
        if self.launcher == "kubernetes" and self.kubernetes_pod_template is None:
            raise ValueError("launcher kubernetes needs kubernetes_pod_template, a file")
        return self

    @property
    def placement(self) -> Placement:
        """Which class of workers takes which jobs."""
        return Placement(self.queue, self.worker_gpus, self.max_nodes)

    @property
    def database(self) -> str:
        return self.database_url or f"sqlite:///{self.data_dir.absolute() / 'luthier.db'}"

    @property
    def storage(self) -> str:
        return self.storage_url or f"file://{self.data_dir.absolute() / 'objects'}"

    @property
    def inference(self) -> str:
        """The URL of whatever generates."""
        if self.generator == "vllm":
            return self.vllm_url
        return self.inference_url or f"http://{self.inference_host}:{self.inference_port}"

    @property
    def inference_key(self) -> str:
        """What that asks for as a bearer token; empty: nothing."""
        key = self.vllm_api_key if self.generator == "vllm" else None
        return key.get_secret_value() if key else ""

    @property
    def vllm_rank(self) -> int | None:
        """The highest rank that the generator serves, where that is vLLM."""
        return self.vllm_max_lora_rank if self.generator == "vllm" else None

    @property
    def can_quantize(self) -> bool:
        """Whether qlora jobs are taken. Asks for the package without importing it or torch."""
        return find_spec("bitsandbytes") is not None if self.qlora is None else self.qlora

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """What workers train on. Looks for NVIDIA's driver without importing torch."""
        here: Literal["cpu", "cuda"] = "cuda" if NVIDIA_DRIVER.exists() else "cpu"
        return self.train_device or here

    @property
    def threads(self) -> int:
        """Of a training child."""
        return self.train_threads or cores()

    @property
    def embedded(self) -> bool:
        """True where no broker is configured: the sweep alone wakes the worker."""
        return not self.broker_url


def as_environment(settings: Settings) -> dict[str, str]:
    """This process's environment with `settings` in it: a child builds the same ones from it."""
    here = {
        name: value
        for name, value in os.environ.items()  # noqa: TID251 - this is the one place
        if not name.startswith("LUTHIER_")
    }
    for name, value in settings:
        if isinstance(value, SecretStr):
            value = value.get_secret_value()
        if value is not None:
            whole = isinstance(value, dict | tuple)
            text = json.dumps(value, default=str) if whole else str(value)
            here[f"LUTHIER_{name.upper()}"] = text
    return here


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# A fraction of a millisecond: longer than Python takes from one layer to the next.
SPINS = 30_000


def quiet_threads(threads: int, *, spins: int = 0) -> None:
    """Set what torch and the libraries around it read once, at import.

    Waiting threads sleep instead of spinning: with the default, two torch processes on one machine
    slow each other down several times over. No progress bars, and no word to anybody of what is
    trained here. Call it before anything imports torch.

    spins: how often a thread looks for work before it sleeps. Waking it takes longer than a layer
    of a small model does, for a batch that generates.
    """
    wanted = {
        "GOMP_SPINCOUNT": str(spins),
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": str(threads),
        "TQDM_DISABLE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    for name, value in wanted.items():
        os.environ.setdefault(name, value)  # noqa: TID251 - this is the one place
