"""`luthier api`, `worker`, `inference` and `attempt`: one role each, in this process."""

import gc
import importlib.util
import resource
import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from cli.configuration import DataDir, read_settings
from cli.failure import CommandFailed
from cli.family import adopt, end_with_parent, listen, port_of
from cli.logs import configure_logging
from cli.metrics import serve_metrics
from cli.tracing import Continued, start_tracing

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from jobs.database import Database
    from jobs.settings import Settings

OURS = ("api", "jobs", "engine", "adapters", "storage", "cli")
SCHEMA_POLL_S = 0.5
DRAIN_S = 5  # for requests in flight; a job's event stream never ends by itself

Host = Annotated[str | None, typer.Option("--host", help="Address to listen on. [127.0.0.1]")]
Port = Annotated[int | None, typer.Option("--port", help="0 picks a free one.")]
MetricsPort = Annotated[
    int | None,
    typer.Option("--metrics-port", help="First that /metrics tries; 0 picks a free one. [8323]"),
]
# These are for `luthier serve`, which starts the roles.
Fd = Annotated[int | None, typer.Option("--fd", hidden=True)]
MetricsFd = Annotated[int | None, typer.Option("--metrics-fd", hidden=True)]
Child = Annotated[bool, typer.Option("--child", hidden=True)]


def api(
    host: Host = None,
    port: Port = None,
    metrics_port: MetricsPort = None,
    data_dir: DataDir = None,
    fd: Fd = None,
    metrics_fd: MetricsFd = None,
    child: Child = False,
) -> None:
    """Run the HTTP API."""
    flags = {"host": host, "port": port, "metrics_port": metrics_port}
    settings = _begin("api", child, data_dir=data_dir, **flags)
    bound = adopt(fd) if fd is not None else listen(settings.host, settings.port, "--port")
    from api.app import create_app
    from api.services import open_services

    services = open_services(settings)
    serve_metrics(settings, services.instruments.registry, metrics_fd)
    _serve_http(create_app(services), bound)


def worker(
    queue: Annotated[str | None, typer.Option("--queue", help="The GPU class. [default]")] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", help="For training; 0: every core.")
    ] = None,
    metrics_port: MetricsPort = None,
    data_dir: DataDir = None,
    metrics_fd: MetricsFd = None,
    child: Child = False,
) -> None:
    """Run a training worker: takes one job after another."""
    flags = {"queue": queue, "train_threads": threads, "metrics_port": metrics_port}
    settings = _begin("worker", child, data_dir=data_dir, **flags)
    from jobs.settings import cores, quiet_threads

    quiet_threads(settings.train_threads or cores())
    from prometheus_client import CollectorRegistry

    from jobs.worker import run

    run(settings, registry=_measured(settings, CollectorRegistry(), metrics_fd))


def inference(
    base_model: Annotated[
        str | None, typer.Option("--base-model", help="Which base to serve. [the first allowed]")
    ] = None,
    host: Host = None,
    port: Port = None,
    threads: Annotated[int | None, typer.Option("--threads", help="0: half of the cores.")] = None,
    metrics_port: MetricsPort = None,
    data_dir: DataDir = None,
    fd: Fd = None,
    metrics_fd: MetricsFd = None,
    child: Child = False,
) -> None:
    """Run the inference server: one base model and every adapter of it."""
    flags = {
        "inference_host": host,
        "inference_port": port,
        "inference_threads": threads,
        "metrics_port": metrics_port,
    }
    settings = _begin("inference", child, data_dir=data_dir, **flags)
    bound = (
        adopt(fd)
        if fd is not None
        else listen(settings.inference_host, settings.inference_port, "--port")
    )
    _serve_http(Continued(_inference_app(settings, base_model, metrics_fd)), bound)


def _inference_app(settings: "Settings", base_model: str | None, metrics_fd: int | None) -> Any:
    from jobs.settings import SPINS, cores, quiet_threads

    threads = settings.inference_threads or max(1, cores() // 2)
    quiet_threads(threads, spins=SPINS)
    from adapters.cache import AdapterCache
    from engine.bases import BaseCatalogue
    from engine.infer.metrics import Metrics
    from engine.infer.server import create_app
    from jobs.opening import open_objects

    metrics = Metrics()
    _measured(settings, metrics.registry, metrics_fd)
    base = BaseCatalogue(settings.base_models).find(
        base_model or next(iter(settings.base_models), ""), weights=True
    )
    objects = open_objects(settings, metrics.registry)
    cache = AdapterCache(objects, settings.data_dir / "adapters", settings.adapter_cache_bytes)
    auto = settings.inference_dtype == "auto"
    return create_app(
        base_name=base.name,
        base_path=base.path,
        fetch=fetcher(cache),
        threads=threads,
        max_running=settings.inference_max_running,
        max_waiting=settings.inference_max_waiting,
        max_resident=settings.inference_max_resident,
        max_resident_bytes=settings.inference_resident_bytes,
        kv_bytes=settings.inference_kv_bytes,
        lora_bytes=settings.inference_lora_bytes,
        dtype=None if auto else settings.inference_dtype,
        metrics=metrics,
    )


def fetcher(cache: Any) -> Any:
    """The inference server's `fetch` over an adapter cache, with the errors it knows."""
    from adapters.errors import AdapterCorrupt, AdapterError, AdapterMissing
    from engine.infer.errors import AdapterNotFound, AdapterRefused, AdapterUnavailable
    from storage.objects import StorageError

    def fetch(adapter_id: str) -> Path:
        try:
            found: Path = cache.path(adapter_id)
        except AdapterMissing as error:
            raise AdapterNotFound(adapter_id) from error
        except AdapterCorrupt as error:
            raise AdapterRefused("adapter_corrupt", str(error)) from error
        except (AdapterError, StorageError) as error:
            raise AdapterUnavailable(str(error)) from error
        return found

    return fetch


def attempt(
    job: Annotated[str, typer.Argument(help="The job's id.")],
    number: Annotated[int, typer.Argument(help="The attempt's number, from 1.", min=1)],
    threads: Annotated[
        int | None, typer.Option("--threads", help="For training; 0: every core.")
    ] = None,
    metrics_port: MetricsPort = None,
    data_dir: DataDir = None,
    # As torchrun and Kubeflow's Trainer tell the machines of a job about each other.
    node: Annotated[
        int, typer.Option(envvar="PET_NODE_RANK", help="This machine's number.", min=0)
    ] = 0,
    master_addr: Annotated[
        str, typer.Option(envvar="PET_MASTER_ADDR", help="The first machine.")
    ] = "",
    master_port: Annotated[
        int, typer.Option(envvar="PET_MASTER_PORT", help="Where that one is met.")
    ] = 29400,
) -> None:
    """Run one attempt of a job to its end; the exit code says how it ended.

    0 done, 10 failed for good, 11 queued again, 12 cancelled or paused, 13 not this attempt's turn.
    """
    flags = {"train_threads": threads, "metrics_port": metrics_port}
    settings = _begin("attempt", False, data_dir=data_dir, **flags)
    from jobs.settings import cores, quiet_threads

    quiet_threads(settings.train_threads or cores())
    from prometheus_client import CollectorRegistry

    from jobs.worker import run_attempt

    registry = _measured(settings, CollectorRegistry())
    master = f"{master_addr}:{master_port}" if master_addr else ""
    end = run_attempt(settings, job, number, node=node, master=master, registry=registry)
    raise typer.Exit(end)


def _measured(
    settings: "Settings", registry: "CollectorRegistry", fd: int | None = None
) -> "CollectorRegistry":
    """The registry of a process that may use GPUs, answering scrapes."""
    from jobs.gpus import GpuCollector, open_gpus

    registry.register(GpuCollector(open_gpus()))
    serve_metrics(settings, registry, fd)
    return registry


def migrate(
    wait_s: Annotated[
        float | None,
        typer.Option("--wait", metavar="SECONDS", help="Only wait until another has done it."),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Bring the database to the newest schema."""
    check_names()
    from cli.look import TICK, note
    from jobs.database import Database

    settings = read_settings(data_dir=data_dir)
    database = Database(settings.database)
    try:
        if wait_s is None:
            database.migrate()
        else:
            _await_schema(database, wait_s)
    finally:
        database.close()
    note(TICK, "green", "The database is at the newest schema", f"  {database.url!r}")


def _await_schema(database: "Database", wait_s: float) -> None:
    """Return once the schema is there. Raises CommandFailed when it is not in time."""
    from jobs.errors import StoreUnavailable

    deadline, problem = time.monotonic() + wait_s, ""
    while True:
        try:
            if database.current():
                return
            problem = "The database's schema is not the newest; run `luthier migrate`."
        except StoreUnavailable as error:
            problem = str(error)
        if time.monotonic() > deadline:
            raise CommandFailed(f"Waited {wait_s:g} s. {problem}")
        time.sleep(SCHEMA_POLL_S)


def check_names() -> None:
    """Fail when another installed package has taken one of our import names."""
    home = Path(__file__).resolve().parent.parent
    for name in OURS:
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).resolve() if spec and spec.origin else None
        if found is None or not found.is_relative_to(home / name):
            raise CommandFailed(
                f"The package {name!r} is not Luthier's but {found or 'missing'}; "
                "uninstall what brings it, or use an environment of Luthier's own."
            )


def _begin(role: str, child: bool, **flags: Any) -> "Settings":
    """What every role does first."""
    if child:
        end_with_parent()
    signal.signal(signal.SIGTERM, _leave)
    check_names()
    settings = read_settings(**flags)
    configure_logging(settings.log_format, role)
    start_tracing(settings, role)
    return settings


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    # Before uvicorn runs, and when it raises the signal again after a graceful end.
    sys.exit(0)


def _allow_connections() -> None:
    """Ask for all descriptors that there are for it: each poller holds one, 1024 are soon used."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _serve_http(app: Any, bound: socket.socket) -> None:
    import structlog
    import uvicorn

    from cli.patience import PatientProtocol

    _allow_connections()
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=DRAIN_S,
        server_header=False,
    )
    server = uvicorn.Server(config)
    host = bound.getsockname()[0]
    structlog.get_logger().info("http.listening", url=f"http://{host}:{port_of(bound)}")
    gc.collect()
    gc.freeze()  # what is there now stays: no collection holds requests up to look at it again
    server.run(sockets=[bound])
    if not server.started:
        raise CommandFailed("The server could not start; the lines above say why.")
