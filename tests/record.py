"""Figures that tests measure for a promise of docs/reliability.md, each held to its target.

    def test_...(record: Record) -> None:
        record("R4", "POST /jobs without Redis", took_s, "s", at_most=1.0)
        record("R1", "jobs lost", lost, exactly=0)

A figure is written down before it is held to its target, and the file of a test at its end, so the
table shows what was missed as well. `make reliability-table` makes the page from these files.
"""

import json
import re
import time
from pathlib import Path
from typing import Any, Literal

FOLDER = Path(__file__).resolve().parent.parent / ".reliability"

Outcome = Literal["passed", "failed"]


class Record:
    """The figures of one test. Call it to record one; `not_run` before a skip says why."""

    def __init__(self, test: str, folder: Path = FOLDER) -> None:
        self._test, self._folder = test, folder
        self._figures: list[dict[str, Any]] = []

    def __call__(
        self,
        row: str,
        what: str,
        measured: Any,
        unit: str = "",
        *,
        at_most: float | None = None,
        at_least: float | None = None,
        exactly: Any = None,
    ) -> None:
        """Write down what was measured for a row, and fail the test where it misses its target."""
        if isinstance(measured, float):
            measured = float(f"{measured:.3g}") if abs(measured) < 100 else round(measured, 1)
        sign, target = _target(at_most, at_least, exactly)
        met = _met(measured, sign, target)
        figure = {"row": row, "what": what, "measured": measured, "unit": unit}
        self._figures.append(figure | {"sign": sign, "target": target, "met": met})
        assert met, f"{row}: {what}: {measured} {unit}, promised {sign} {target} {unit}"

    def not_run(self, row: str, why: str) -> None:
        """What cannot be run here, and why."""
        self._figures.append({"row": row, "not_run": why})

    def write(self, outcome: Outcome) -> None:
        if self._figures:
            self._folder.mkdir(exist_ok=True)
            name = re.sub(r"[^A-Za-z0-9]+", "-", self._test).strip("-")[-180:]
            found = {
                "test": self._test,
                "outcome": outcome,
                "day": time.strftime("%Y-%m-%d", time.gmtime()),
                "figures": self._figures,
            }
            (self._folder / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")


def _target(
    at_most: float | None, at_least: float | None, exactly: Any
) -> tuple[Literal["≤", "≥", "="], Any]:
    if at_most is not None:
        return "≤", at_most
    if at_least is not None:
        return "≥", at_least
    if exactly is None:
        raise TypeError("a figure has a target: give at_most, at_least or exactly")
    return "=", exactly


def _met(measured: Any, sign: str, target: Any) -> bool:
    if sign == "=":
        return bool(measured == target)
    return bool(measured <= target if sign == "≤" else measured >= target)
