"""docs/reliability.md from the figures that tests recorded: every promise, its target, its proof.

Run by `make reliability-table`, after any tests. Tests that were not run anew keep their figures,
which are in docs/reliability.json; what a test is no longer there to show is dropped.
"""

import json
import sys
from collections.abc import Iterable
from typing import Any

from jobs.settings import REPO
from tests.promises import PROMISES, RELIABILITY, SECURITY, Promise
from tests.record import FOLDER

TABLE = REPO / "docs" / "reliability.md"
FIGURES = REPO / "docs" / "reliability.json"

HEAD = """# What is promised, and what was measured

Made by `make reliability-table` from the figures that the tests recorded; none is written by hand.
A figure stands beside its target, and one that missed it is marked **missed**. Of a test that runs
in several forms the worst is shown. `make test` runs all but the long ones, which `make soak` runs.
"""
COLUMNS = """
| | promise | target | measured | by |
|---|---|---|---|---|
"""

Found = dict[str, Any]


def collected() -> list[Found]:
    """What every test recorded last, by its name."""
    kept = json.loads(FIGURES.read_text()) if FIGURES.exists() else []
    tests = {found["test"]: found for found in kept}
    for path in sorted(FOLDER.glob("*.json")):
        found = json.loads(path.read_text())
        tests[found["test"]] = found
    return [tests[name] for name in sorted(tests) if _is_there(name)]


def _is_there(test: str) -> bool:
    path, _, name = test.partition("::")
    function = name.rpartition("::")[2].partition("[")[0]
    file = REPO / path
    return file.is_file() and f"def {function}(" in file.read_text()


def row_of(row: str, promise: Promise, tests: list[Found]) -> str:
    figures = [
        figure | {"test": found["test"], "outcome": found["outcome"]}
        for found in tests
        for figure in found["figures"]
        if figure["row"] == row
    ]
    lines = list(_measured(figures))
    if promise.left_out:
        lines.append(f"not run: {promise.left_out}")
    by = dict.fromkeys(f"`{figure['test'].partition('::')[0]}`" for figure in figures)
    text = "<br>".join(lines) or "not run: no test has recorded a figure"
    return f"| {row} | {promise.promise} | {promise.target} | {text} | {'<br>'.join(by)} |"


def _measured(figures: list[Found]) -> Iterable[str]:
    """One line a figure; of a figure that several tests recorded, the worst."""
    by_name: dict[str, list[Found]] = {}
    for figure in figures:
        by_name.setdefault(figure.get("what", ""), []).append(figure)
    for what, same in by_name.items():
        for reason in dict.fromkeys(f["not_run"] for f in same if "not_run" in f):
            yield f"not run: {reason}"
        shown = [figure for figure in same if "measured" in figure]
        if shown:
            yield _line(what, _worst(shown))


def _worst(same: list[Found]) -> Found:
    failed = [figure for figure in same if not figure["met"] or figure["outcome"] == "failed"]
    among = failed or same
    if among[0]["sign"] == "=":
        return among[0]
    pick = max if among[0]["sign"] == "≤" else min
    return pick(among, key=lambda figure: figure["measured"])


def _line(what: str, figure: Found) -> str:
    unit = f" {figure['unit']}" if figure["unit"] else ""
    target = f"{figure['sign']} {_text(figure['target'])}"
    text = f"{what}: **{_text(figure['measured'])}{unit}** ({target})"
    if not figure["met"]:
        return f"{text} **missed**"
    return f"{text} (its test failed elsewhere)" if figure["outcome"] == "failed" else text


def _text(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def page(tests: list[Found]) -> str:
    parts = [HEAD]
    for title, promises in (("Reliability", RELIABILITY), ("Security", SECURITY)):
        rows = (row_of(row, promise, tests) + "\n" for row, promise in promises.items())
        parts += [f"\n## {title}\n", COLUMNS, *rows]
    return "".join(parts)


def main() -> None:
    tests = collected()
    unknown = {f["row"] for found in tests for f in found["figures"]} - set(PROMISES)
    if unknown:
        sys.exit(f"figures for rows that tests/promises.py does not have: {sorted(unknown)}")
    FIGURES.write_text(json.dumps(tests, indent=1, ensure_ascii=False) + "\n")
    TABLE.write_text(page(tests))
    missed = [f for found in tests for f in found["figures"] if not f.get("met", True)]
    for figure in missed:
        print(f"missed: {figure['row']} {figure['what']}: {figure['measured']}")


if __name__ == "__main__":
    main()
