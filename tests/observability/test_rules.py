"""The alerts: each is tested by Prometheus' own tool, says what is wrong, and where help is."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.observability.service import OBSERVABILITY
from tests.workers import REPO

RULES = OBSERVABILITY / "rules.yaml"
TESTS = (OBSERVABILITY / "rules_test.yaml", OBSERVABILITY / "rules_slow_test.yaml")
ALERTS = [
    rule
    for group in yaml.safe_load(RULES.read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
]


def test_the_rules_are_rules(promtool: Path) -> None:
    checked = [promtool, "check", "rules", "--lint-fatal", RULES]
    found = subprocess.run(checked, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.stem))
def test_each_alert_speaks_where_it_must_and_nowhere_else(promtool: Path, path: Path) -> None:
    tested = [promtool, "test", "rules", path]
    found = subprocess.run(tested, capture_output=True, text=True, cwd=path.parent)
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_prometheus_that_is_shipped_reads_its_configuration(promtool: Path) -> None:
    checked = [promtool, "check", "config", OBSERVABILITY / "prometheus.yml"]
    found = subprocess.run(checked, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))
def test_an_alert_is_tested_both_ways_and_has_a_runbook(alert: dict[str, Any]) -> None:
    looks = [
        bool(look["exp_alerts"])
        for path in TESTS
        for test in yaml.safe_load(path.read_text())["tests"]
        for look in test.get("alert_rule_test", ())
        if look["alertname"] == alert["alert"]
    ]
    assert set(looks) == {True, False}
    assert alert["labels"]["severity"] in ("page", "ticket")
    page, _, section = alert["annotations"]["runbook"].partition("#")
    headings = (REPO / page).read_text().lower().splitlines()
    assert f"### {section.replace('-', ' ')}" in headings
