"""How the command looks: the consoles, the marks and the few styles everything is printed in."""

import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_COLUMNS = 80
_PIPE_COLUMNS = 160  # tables in a pipe are read by programs, which need no folding

out = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_COLUMNS)
err = Console(stderr=True, highlight=False)

_UTF8 = out.encoding.lower().startswith("utf")
TICK = "✓" if _UTF8 else "+"
CROSS = "✗" if _UTF8 else "x"
DOT = "·" if _UTF8 else "-"


def plain(line: str) -> None:
    """A line for eyes and pipes alike: no markup, never wrapped."""
    out.print(line, markup=False, soft_wrap=True)


def note(mark: str, style: str, *parts: str) -> None:
    """A marked line; the first part is what, the rest is dim."""
    text = Text("  ").append(mark, style).append("  ").append(parts[0])
    for part in parts[1:]:
        text.append(part, "dim")
    out.print(text, soft_wrap=True)


def aside(line: str) -> None:
    """A dim line under a marked one."""
    if line:
        out.print(Text(f"     {line}", "dim"), soft_wrap=True)


def heading(title: str, aside: str = "") -> None:
    out.print(Text("\n  ").append(title, "bold").append(f"  {aside}" if aside else "", "dim"))


def commands(lines: Iterable[str]) -> None:
    """Commands to copy, one a line."""
    for line in lines:
        if line.startswith("luthier "):
            line = program() + line.removeprefix("luthier")
        out.print(Text("    ").append(line, "cyan"), soft_wrap=True)


def program() -> str:
    """How this program is started from here: by its name where the shell finds it."""
    typed = sys.argv[0]
    return typed if Path(typed).name == "luthier" and not shutil.which("luthier") else "luthier"


def fail(message: str, details: Iterable[str] = ()) -> None:
    """The red line of a failed command, on stderr."""
    err.print(Text(f"{CROSS} {message}", "red"), soft_wrap=True)
    for detail in details:
        err.print(Text(f"  {detail}", "dim"), soft_wrap=True)


def since(seconds: float) -> str:
    """A duration for people: 0.42 s, 12.3 s, 4 min 05 s."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"


def size(count: float) -> str:
    """Bytes for people: 512 B, 1.3 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def fact(name: str, value: str, aside: str = "") -> None:
    """A name and what it is, in a column."""
    text = Text("  ").append(f"{name:<9}", "dim").append(value)
    out.print(text.append(f"   {aside}" if aside else "", "dim"), soft_wrap=True)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """A spinner on a terminal, nothing elsewhere."""
    from rich.progress import Progress, SpinnerColumn, TextColumn

    if not out.is_terminal:
        yield
        return
    columns = (TextColumn(" "), SpinnerColumn(), TextColumn("{task.description}", style="dim"))
    with Progress(*columns, console=out, transient=True) as progress:
        progress.add_task(what, total=None)
        yield


def side_by_side(*columns: str) -> Table:
    """Texts beside each other, folded into 80 columns wherever they are printed."""
    width = min(out.width, _COLUMNS)
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, header_style="bold", width=width, leading=1)
    for column in columns:
        made.add_column(column, overflow="fold", ratio=1)
    return made
