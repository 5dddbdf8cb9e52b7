"""What was made to hang, crash or mislead a grader gets its exact answer, and soon."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.graders import check
from tests import clock
from tests.engine.graders.making import graded, grader

CORPUS = Path(__file__).parents[2] / "corpus" / "graders"
ATTACKS: dict[str, dict[str, Any]] = json.loads((CORPUS / "attacks.json").read_text())
PATIENCE_S = 30.0  # a second or two by themselves; machines are busy


def sample_of(written: Any) -> str:
    if isinstance(written, str):
        return written
    return str(written["text"] * written["times"] + written["end"])


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_has_its_exact_outcome(name: str) -> None:
    attack = ATTACKS[name]
    made = grader(**attack["grader"])
    began = clock.now()
    problems = [problem.message for problem in check(made)]
    assert problems == ([attack["problem"]] if "problem" in attack else [])
    found = graded(made, sample_of(attack.get("sample", "")), {"secret": "canary-7"})
    assert clock.now() - began < PATIENCE_S
    if "fault" in attack:
        assert [fault.message for fault in found.faults] == [attack["fault"]]
    if "reward" in attack:
        assert found.faults == ()
    assert found.score == attack.get("reward", 0)
