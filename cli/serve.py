"""`luthier serve`: the whole service on this machine, until Ctrl-C or SIGTERM."""

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.configuration import DataDir, read_settings
from cli.home import key_path
from cli.logs import line_of, parse
from cli.metrics import TARGETS
from cli.roles import Host, MetricsPort, Port, check_names

if TYPE_CHECKING:
    from cli.service import Service

_SHOWN_ALREADY = ("http.", "metrics.", "worker.", "inference.started", "inference.stopped")
_WARNINGS = ("warning", "error", "critical")


def serve(
    host: Host = None,
    port: Port = None,
    inference_port: Annotated[
        int | None, typer.Option("--inference-port", help="0 picks a free one. [8322]")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option("--base-model", help="Which base to serve. [the first allowed]")
    ] = None,
    metrics_port: MetricsPort = None,
    data_dir: DataDir = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Every log line, requests included.")
    ] = False,
) -> None:
    """Run the whole service on this machine: API, worker and inference."""
    from cli import look
    from cli.service import Service

    check_names()
    settings = read_settings(
        host=host,
        port=port,
        inference_port=inference_port,
        metrics_port=metrics_port,
        data_dir=data_dir,
    )
    json_logs = settings.log_format == "json"
    service = Service(
        settings,
        base_model=base_model,
        on_line=raw_lines if json_logs else log_lines(verbose),
        on_trouble=raw_trouble if json_logs else trouble,
    )
    with stop_on_signals(service) as stop:
        look.heading("Luthier", "a fine-tuning service on this machine")
        look.plain("")
        with service:
            if _started(service, stop):
                _welcome(service)
                service.tend(stop)
            look.note(
                look.DOT, "dim", "Stopping", "  a running job is saved; Ctrl-C again to hurry"
            )
    look.note(look.TICK, "green", "Stopped")


def _started(service: "Service", stop: threading.Event) -> bool:
    """Show each role as it comes up; False when asked to stop before that."""
    from cli import look

    where = {"api": service.url, "inference": service.inference_url, "worker": ""}
    with look.waiting("starting"):
        for ready in service.starting():
            if stop.is_set():
                return False
            if ready is not None:
                look.note(
                    look.TICK,
                    "green",
                    f"{ready.role:<10}{where[ready.role]:<34}",
                    f"ready after {look.since(ready.after_s)}",
                )
    return True


def _welcome(service: "Service") -> None:
    from cli import look
    from jobs.settings import REPO

    data_dir = service.settings.data_dir
    look.plain("")
    look.fact("Models", ", ".join(service.settings.base_models))
    look.fact("Key", near(key_path(data_dir)), "the commands below find it")
    look.fact("Logs", near(data_dir / "logs"))
    look.fact("Metrics", near(data_dir / TARGETS), "where Prometheus finds them")
    look.fact("Docs", f"{service.url}/docs")
    look.heading("Try")
    examples = near(REPO / "examples" / "data")
    look.commands(
        [
            *([f"export LUTHIER_DATA_DIR={data_dir}"] if elsewhere(data_dir) else []),
            f"luthier dataset upload {examples}/demo_train.jsonl",
            f"luthier job submit {examples}/demo_job.json --dataset DATASET --follow",
            'luthier generate --adapter ADAPTER "..."',
        ]
    )
    look.plain("\n  Ctrl-C stops it all.\n")


def near(path: Path) -> str:
    """A path as short as it can be said from here."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def elsewhere(data_dir: Path) -> bool:
    """Whether commands that are typed here would look for the service in another folder."""
    return read_settings().data_dir != data_dir


def raw_lines(role: str, line: str) -> None:
    from cli.look import err

    err.print(line, markup=False, soft_wrap=True)


def raw_trouble(role: str, what: str) -> None:
    event = {"event": "role.trouble", "level": "warning", "role": role, "what": what}
    raw_lines(role, json.dumps(event))


def trouble(role: str, what: str) -> None:
    """What happened to a role that nobody asked for."""
    from cli import look

    look.note("!", "yellow", f"{role} {what}")


def log_lines(verbose: bool) -> Any:
    """Shows log lines for eyes; without `verbose` those that somebody should see."""

    def show(role: str, line: str) -> None:
        from cli.look import err

        event = parse(line)
        if event is not None and (verbose or _matters(event)):
            err.print(line_of(event), soft_wrap=True)
        elif event is None and verbose:
            err.print(line, style="dim", markup=False, soft_wrap=True)

    return show


def _matters(event: dict[str, Any]) -> bool:
    """All but requests that went well and the comings and goings of roles, which are shown."""
    name = str(event["event"])
    return event.get("level") in _WARNINGS or not name.startswith(_SHOWN_ALREADY)


@contextmanager
def stop_on_signals(service: "Service") -> Iterator[threading.Event]:
    """An event that Ctrl-C, SIGTERM or a closed terminal sets; the second one makes haste."""
    from jobs.signals import heard

    stop = threading.Event()
    asked = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    with heard(asked, lambda: (service.hurry if stop.is_set() else stop).set()):
        yield stop
