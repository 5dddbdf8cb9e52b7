"""Following a job: a live progress bar on a terminal, a few plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from cli import look
from cli.client import Client
from cli.failure import CommandFailed

_PLAIN_LINES = 10  # of progress, in a run whose output is no terminal


class Seen(NamedTuple):
    """Where the job is, as far as its events said."""

    status: str
    step: int
    total_steps: int | None
    loss: float | None


def follow(client: Client, job_id: str) -> dict[str, Any]:
    """Show a job until it has ended; the job then. Raises CommandFailed unless it succeeded."""
    seen = Seen("queued", 0, None, None)
    with _display() as (show, say):
        for event in client.events(job_id):
            if event["type"] == "metrics":
                seen = _advanced(client, job_id, seen, event["data"])
            elif event["type"] == "state":
                seen = seen._replace(status=str(event["data"].get("status", seen.status)))
            if event["level"] != "info":
                say(str(event["message"]))
            show(seen)
    job: dict[str, Any] = client.get(f"/jobs/{job_id}")
    _require_success(job)
    return job


def _advanced(client: Client, job_id: str, seen: Seen, data: dict[str, Any]) -> Seen:
    total = seen.total_steps
    if total is None:
        total = client.get(f"/jobs/{job_id}")["progress"]["total_steps"]
    return Seen(seen.status, int(data["step"]), total, data.get("loss", seen.loss))


def _require_success(job: dict[str, Any]) -> None:
    if job["status"] != "succeeded":
        error = job["error"]
        why = f" ({error['code']}): {error['message']}" if error else "."
        raise CommandFailed(f"Job {job['id']} {job['status']}{why}")


def _loss(loss: float | None) -> str:
    return "" if loss is None else f"loss {loss:.3f}"


Show = Callable[[Seen], None]
Say = Callable[[str], None]


@contextmanager
def _display() -> Iterator[tuple[Show, Say]]:
    if look.out.is_terminal:
        with _bar() as parts:
            yield parts
    else:
        yield _lines()


@contextmanager
def _bar() -> Iterator[tuple[Show, Say]]:
    progress = Progress(
        TextColumn(" "),
        SpinnerColumn(finished_text=f"[green]{look.TICK}[/green]"),
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        TextColumn("{task.fields[steps]:>9}"),
        TextColumn("{task.fields[loss]:<10}", style="cyan"),
        TimeElapsedColumn(),
        console=look.out,
    )
    with progress:
        task = progress.add_task("queued   ", total=None, steps="", loss="")

        def show(seen: Seen) -> None:
            running = seen.status == "running" and seen.total_steps
            progress.update(
                task,
                description=f"{'training' if running else seen.status:<8}",
                total=seen.total_steps,
                completed=seen.step,
                steps=f"{seen.step}/{seen.total_steps}" if seen.total_steps else "",
                loss=_loss(seen.loss),
            )

        def say(message: str) -> None:
            progress.console.print(f"  [yellow]![/yellow]  {message}")

        yield show, say


def _lines() -> tuple[Show, Say]:
    started = time.monotonic()
    told: set[object] = set()

    def show(seen: Seen) -> None:
        total = seen.total_steps or 0
        tenth = seen.step * _PLAIN_LINES // total if total else 0
        news: object = (seen.status, tenth) if seen.step else seen.status
        if news not in told:
            told.add(news)
            steps = f"step {seen.step}/{total}" if seen.step else ""
            after = look.since(time.monotonic() - started)
            look.plain(
                f"     {seen.status:<10}{steps:<14}{_loss(seen.loss):<12}{after:>8}".rstrip()
            )

    def say(message: str) -> None:
        look.plain(f"  !  {message}")

    return show, say
