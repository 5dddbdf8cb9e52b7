"""S12: the API does what its OpenAPI document says, whatever is sent to it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from hypothesis import settings

from tests.fuzz.conftest import Fuzzed
from tests.record import Record

REPO = Path(__file__).resolve().parents[2]
THOROUGH = settings.get_current_profile_name() == "fuzz"
CASES = 200 if THOROUGH else 6
PHASES = "examples,coverage,fuzzing,stateful" if THOROUGH else "examples,fuzzing"


def fuzz(fuzzed: Fuzzed, report: Path, said: Path, *options: str) -> int:
    """Schemathesis with every check over every operation; its exit status."""
    with said.open("w") as output:
        command = [
            *(sys.executable, "-m", "schemathesis.cli"),
            *("--config-file", str(REPO / "tests/fuzz/schemathesis.toml")),
            *("run", f"{fuzzed.url}/openapi.json", "--no-color"),
            *("-H", f"Authorization: Bearer {fuzzed.key}"),
            *("--checks", "all", "--mode", "all", "--max-examples", str(CASES)),
            *("--phases", PHASES, "--continue-on-failure", "--request-timeout", "60"),
            *("--workers", "1"),  # more would parse at once, where CPython 3.11 miscounts its depth
            *("--suppress-health-check", "all", "--generation-database", "none"),
            *("--report", "json", "--report-json-path", str(report)),
            *options,
        ]
        done = subprocess.run(command, cwd=REPO, stdout=output, stderr=output)
    return done.returncode


def test_every_operation_keeps_the_document(fuzzed: Fuzzed, tmp_path: Path, record: Record) -> None:
    report, log = tmp_path / "report.json", tmp_path / "said.txt"
    status = fuzz(fuzzed, report, log)
    said = log.read_text().replace(fuzzed.key, "lk_...")
    assert report.exists(), said
    found: dict[str, Any] = json.loads(report.read_text())
    assert (found["failures"], found["errors"], status) == ([], [], 0), said[-12_000:]
    operations, cases = found["operations"], found["test_cases"]
    record("S12", "operations tried with every check", operations["tested"], at_least=57)
    record("S12", "requests to them", cases["generated"], at_least=CASES * operations["tested"])
    record("S12", "failures", cases["unique_failures"], exactly=0)
    assert operations["tested"] == operations["total"]
