"""The corpus of datasets through the front door: a 4xx in the envelope, and nothing stored."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.anyio

CORPUS = Path(__file__).resolve().parents[1] / "corpus" / "datasets"
CASES = json.loads((CORPUS / "cases.json").read_text())


def name_of(value: Any) -> str:
    return str(value["file"]) if isinstance(value, dict) else "form" if value else "raw"


@pytest.mark.parametrize(
    ("case", "as_form"),
    [(case, False) for case in CASES] + [(case, True) for case in CASES[::8]],
    ids=name_of,
)
async def test_a_dataset_of_the_corpus_is_answered_as_its_case_says(
    client: httpx.AsyncClient, stored: Callable[[], list[str]], case: dict[str, Any], as_form: bool
) -> None:
    data = (CORPUS / case["file"]).read_bytes()
    options = {"format": case["format"]}
    if case.get("row_type"):
        options["row_type"] = case["row_type"]

    if as_form:
        answer = await client.post("/datasets", data=options, files={"file": (case["file"], data)})
    else:
        answer = await client.post("/datasets", params=options, content=data)

    if "problems" not in case:
        assert answer.status_code == 201, answer.text
        assert len(stored()) == 1
        return
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (422, "dataset_invalid")
    assert error["total_problems"] == case.get("total", len(case["problems"]))
    said = [{name: p[name] for name in ("line", "field", "message")} for p in error["problems"]]
    for problem, expected in zip(said, case["problems"], strict=True):
        if expected["message"].endswith("("):
            assert problem["message"].startswith(expected["message"])
        else:
            assert problem == expected
    assert stored() == []
    assert (await client.get("/datasets")).json()["data"] == []
