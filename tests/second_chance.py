"""A test that failed while the machine stood still is run once more.

Leases and timeouts of parts of a second are what the tests are about; a machine on which nothing
runs for longer lets them pass, whoever is right. What fails on a machine that runs has failed.
"""

import time

import pytest
from _pytest.runner import runtestprotocol

from tests import clock

PAUSE_S = 0.25
AGAIN = "run again, as the machine stood still"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    began = time.monotonic()
    reports = runtestprotocol(item, log=False, nextitem=nextitem)
    longest_s = max(clock.pauses_s(began, time.monotonic()), default=0.0)
    if longest_s >= PAUSE_S and _failed(reports) and isinstance(item, pytest.Function):
        item.user_properties.append((AGAIN, f"{longest_s:.2f} s; {_what(reports)}"))
        item._initrequest()
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _failed(reports: list[pytest.TestReport]) -> bool:
    """In the test itself: a fixture that others share would fail again in the same way."""
    failed = [report.when for report in reports if report.failed]
    return "call" in failed and "setup" not in failed


def _what(reports: list[pytest.TestReport]) -> str:
    """The first line of what it failed with."""
    text = next(report.longreprtext for report in reports if report.failed)
    said = [line.removeprefix("E").strip() for line in text.splitlines() if line.startswith("E ")]
    return said[0] if said else "failed"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport) and report.when == "call":
                for name, said in report.user_properties:
                    if name == AGAIN:
                        terminalreporter.write_line(f"{report.nodeid}: {AGAIN} for {said}")
