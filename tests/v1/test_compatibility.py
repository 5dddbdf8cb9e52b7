"""docs/compatibility.md is about the SDK that is installed, and about all of it."""

import json

import openai

from benchmarks.compatibility import FOUND, NOT_HERE, PAGE, methods, table
from benchmarks.sdk_calls import CALLS

NO_ROUTE = "404 - Not Found: see /docs"


def test_every_method_of_the_sdk_is_called_and_listed() -> None:
    with openai.OpenAI(api_key="none", base_url="http://127.0.0.1:9") as client:
        known = methods(client)
    assert len(known) >= 48
    assert set(known) == set(CALLS)
    found = json.loads(FOUND.read_text())
    assert found["sdk"] == openai.__version__
    assert [row["method"] for row in found["methods"]] == known
    assert PAGE.read_text() == table(found)


def test_what_does_not_work_has_a_reason() -> None:
    """What is there has to work; what is not is left out on purpose, or has no route at all."""
    rows = json.loads(FOUND.read_text())["methods"]
    left_out = {name for row in rows for name in NOT_HERE if row["method"].startswith(name)}
    assert left_out == set(NOT_HERE)
    failed = [row for row in rows if not row["works"]]
    missing = (NO_ROUTE, "needs what another makes")
    broken = [row for row in failed if not any(said in row["seen"] for said in missing)]
    assert [row for row in broken if not row["method"].startswith(tuple(NOT_HERE))] == []
