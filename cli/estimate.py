"""How an estimate looks: what a job will take, and beside it what it took."""

from collections.abc import Mapping
from typing import Any

_COUNTS = ("rows", "trained_rows", "held_out_rows", "left_out", "fully_masked", "truncated")
_TOKENS = ("longest", "tokens", "trained_tokens", "sampled_tokens")
_BESIDE = ("trained_rows", "trained_tokens", "steps", "trainable_parameters")


def show(estimate: Mapping[str, Any]) -> None:
    """Everything of an estimate, with where each figure is from."""
    from cli import look, shapes

    basis = estimate["basis"]
    for title, names in (("Rows", _COUNTS), ("Tokens", _TOKENS)):
        look.heading(title, basis["tokens"] if title == "Rows" else "")
        shapes.fields({name: f"{estimate[name]:,}" for name in names if estimate[name]})
    look.heading("Training", "")
    shapes.fields(
        {
            "steps": f"{estimate['steps']:,} ({basis['steps']})",
            "trainable_parameters": f"{estimate['trainable_parameters']:,} "
            f"({basis['trainable_parameters']})",
            "time": f"{_time(estimate['seconds'])} ({basis['seconds']})",
        }
    )
    look.heading("Memory", basis["memory"])
    table = shapes.table("part", "size", "from", right=("size",))
    for name, part in estimate["memory"].items():
        table.add_row(name, look.size(part["bytes"]), part["basis"])
    table.add_row("peak", look.size(estimate["peak_memory_bytes"]), "")
    shapes.show(table, empty="")
    for warning in estimate["warnings"]:
        look.note(look.CROSS, "yellow", warning)


def beside(estimate: Mapping[str, Any] | None, actual: Mapping[str, Any] | None) -> None:
    """What was expected of a job, and what it came to; nothing where neither is known."""
    from cli import look, shapes

    if estimate is None and actual is None:
        return
    said, was = estimate or {}, actual or {}
    table = shapes.table("", "estimate", "actual", right=("estimate", "actual"))
    for name in _BESIDE:
        table.add_row(name, _count(said.get(name)), _count(was.get(name)))
    table.add_row("time", _time(said.get("seconds")), _time(was.get("seconds")))
    peaks = (figures.get("peak_memory_bytes") for figures in (said, was))
    table.add_row("peak memory", *("" if peak is None else look.size(peak) for peak in peaks))
    shapes.show(table, empty="")


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _time(seconds: float | None) -> str:
    from cli.look import since

    return "unknown" if seconds is None else since(seconds)
