"""S12: the API does what its OpenAPI document says, whatever is sent to it."""

import json
import re
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
PHASES = "examples,coverage,fuzzing,stateful" if THOROUGH else "examples,coverage,fuzzing"


def fuzz(fuzzed: Fuzzed, report: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Schemathesis with every check over every operation."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli"),
            *("--config-file", str(REPO / "tests/fuzz/schemathesis.toml")),
            *("run", f"{fuzzed.url}/openapi.json", "--no-color"),
            *("-H", f"Authorization: Bearer {fuzzed.key}"),
            *("--checks", "all", "--mode", "all", "--max-examples", str(CASES)),
            *("--phases", PHASES, "--continue-on-failure", "--request-timeout", "30"),
            *("--suppress-health-check", "all", "--generation-database", "none"),
            *("--report", "json", "--report-json-path", str(report)),
            *options,
        ],
        cwd=report.parent,
        capture_output=True,
        text=True,
    )


def test_every_operation_keeps_the_document(fuzzed: Fuzzed, tmp_path: Path, record: Record) -> None:
    report = tmp_path / "report.json"
    done = fuzz(fuzzed, report)
    said = done.stdout + done.stderr
    assert report.exists(), said
    found: dict[str, Any] = json.loads(report.read_text())
    print(json.dumps(found)[:2000])
    assert done.returncode == 0, re.sub(r"lk_\S+", "lk_...", said)[-8000:]
