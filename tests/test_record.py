"""Figures are written down whether or not they meet their targets, and the page shows which."""

import json
from pathlib import Path

import pytest

from benchmarks.reliability import page, row_of
from tests.promises import PROMISES
from tests.record import Record


def test_a_figure_that_misses_its_target_fails_the_test_and_is_shown_as_missed(
    tmp_path: Path,
) -> None:
    figures = Record("tests/test_x.py::test_y", tmp_path)
    figures("R1", "jobs lost", 0, exactly=0)
    with pytest.raises(AssertionError, match="R4"):
        figures("R4", "POST", 1.234, "s", at_most=1.0)
    figures.write("failed")
    (path,) = tmp_path.iterdir()
    shown = page([json.loads(path.read_text())])
    assert "jobs lost: **0** (= 0)" in shown
    assert "POST: **1.23 s** (≤ 1.0) **missed**" in shown


def test_the_worst_of_a_tests_forms_is_shown_and_what_was_not_run_says_why(tmp_path: Path) -> None:
    for name, value in (("a", 3), ("b", 7), ("c", 5)):
        figures = Record(f"tests/test_x.py::test_y[{name}]", tmp_path)
        figures("R3", "losers", value, "ms", at_most=50)
        figures.not_run("R3", "no cluster here")
        figures.write("passed")
    tests = [json.loads(path.read_text()) for path in sorted(tmp_path.iterdir())]
    row = row_of("R3", PROMISES["R3"], tests)
    assert "losers: **7 ms** (≤ 50)" in row
    assert row.count("not run: no cluster here") == 1


def test_a_figure_without_a_target_is_no_figure(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="target"):
        Record("x", tmp_path)("R1", "kills", 3)
