"""Shapes of answers on the screen: fields, tables, bars, tokens."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Literal

from rich import box
from rich.table import Table
from rich.text import Text

from cli.look import out, plain

_STATUS_STYLE = {
    "queued": "dim",
    "running": "cyan",
    "paused": "yellow",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "dim",
    "waiting": "dim",
    "skipped": "yellow",
}
_MOMENTS = ("created_at", "started_at", "finished_at")
_BAR_CELLS = 40
_LARGE_BYTES = 4 << 20  # below this a progress bar only flickers


def table(*columns: str, right: Iterable[str] = ()) -> Table:
    """A light table; columns named in `right` hold numbers. What is too wide ends in dots."""
    made = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1), show_edge=False)
    for column in columns:
        justify: Literal["left", "right"] = "right" if column in set(right) else "left"
        made.add_column(column, justify=justify, no_wrap=True, overflow="ellipsis")
    return made


def show(made: Table, *, empty: str) -> None:
    """A table, or a word about how to get something into it."""
    if made.row_count:
        out.print(made)
    else:
        plain(f"  {empty}")


def status(name: str) -> Text:
    return Text(name, _STATUS_STYLE.get(name, ""))


def when(moment: float) -> str:
    """Seconds since the epoch as a short local time."""
    then = datetime.fromtimestamp(moment)
    return then.strftime("%H:%M:%S" if then.date() == datetime.now().date() else "%Y-%m-%d")


def fields(record: Mapping[str, Any]) -> None:
    """An object, a field a line; what is not there is left out."""
    shown = {name: value for name, value in record.items() if value not in (None, (), [], {})}
    shown.pop("object", None)
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        text = Text("  ").append(f"{name:<{width}}  ", "dim")
        out.print(text.append(_value(name, value)), soft_wrap=True)


def _value(name: str, value: Any) -> Text:
    if name == "status":
        return status(str(value))
    if name in _MOMENTS:
        return Text(datetime.fromtimestamp(value).strftime("%Y-%m-%d %H:%M:%S"))
    if isinstance(value, dict):
        parts = ((k, v) for k, v in value.items() if v is not None)
        return Text(
            ", ".join(f"{k} {v if isinstance(v, str) else json.dumps(v)}" for k, v in parts)
        )
    return Text(value if isinstance(value, str) else json.dumps(value))


def bars(rows: list[tuple[str, int]]) -> None:
    """A histogram."""
    most = max((count for _, count in rows), default=0) or 1
    width = max((len(name) for name, _ in rows), default=0)
    for name, count in rows:
        cells = -(-count * _BAR_CELLS // most)
        text = Text("  ").append(f"{name:<{width}}  {count:>7}  ", "dim")
        out.print(text.append("█" * cells, "cyan"))


def tokens(row: Iterable[tuple[str, bool]]) -> None:
    """A sequence as text; what is learned is green, or stands in [[ ]] where there is no colour."""
    text, before = Text(), False
    marked = not out.is_terminal
    for piece, trained in row:
        if marked and trained != before:
            text.append("[[" if trained else "]]")
        text.append(piece, "bold green" if trained else "dim")
        before = trained
    if marked and before:
        text.append("]]")
    out.print(text)


@contextmanager
def reading(file: Path, what: str) -> Iterator[IO[bytes]]:
    """The open file; with a progress bar on a terminal when it is large."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    if not out.is_terminal or file.stat().st_size < _LARGE_BYTES:
        with file.open("rb") as source:
            yield source
        return
    columns = (TextColumn("  {task.description}"), BarColumn(28), DownloadColumn())
    with (
        Progress(*columns, TransferSpeedColumn(), console=out, transient=True) as progress,
        progress.open(file, "rb", description=what) as source,
    ):
        yield source
