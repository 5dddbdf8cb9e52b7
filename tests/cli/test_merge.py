"""`luthier adapter merge` against a real service: two adapters in, one out, and what that lost."""

import json
from typing import Any

import pytest

from tests.cli.conftest import Luthier, Serving
from tests.workers import conversations


@pytest.fixture(scope="module")
def pair(
    shared_serving: tuple[Luthier, Serving], tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """Two small adapters, trained."""
    shared, _ = shared_serving
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, conversations(60))))
    rows: dict[str, Any] = json.loads(shared.run("dataset", "upload", str(file), "--json"))
    options = ["--dataset", rows["id"], "--rank", "2", "--epochs", "1", "--learning-rate", "5e-3"]
    made = []
    for seed in ("1", "2"):
        shared.run("job", "submit", *options, "--seed", seed, "--follow")
        made.append(json.loads(shared.run("job", "list", "--limit", "1", "--json"))[0])
    return [job["adapter_id"] for job in made]


def test_a_merge_is_followed_to_its_adapter_and_its_figures(
    shared: Luthier, pair: list[str]
) -> None:
    named = [f"{pair[0]}=0.7", f"{pair[1]}=0.3"]
    options = ["--type", "ties", "--density", "0.5", "--name", "both", "--follow"]
    said = shared.run("adapter", "merge", *named, *options)

    job = json.loads(shared.run("job", "list", "--limit", "1", "--json"))[0]
    assert f"Adapter {job['adapter_id']}" in said
    assert "  !  The result's weights are" in said
    assert "merge_error" in said
    assert "merge_logprob_gap" in said
    adapter = json.loads(shared.run("adapter", "show", job["adapter_id"], "--json"))
    assert adapter["name"] == "both"
    assert adapter["lineage"]["parents"] == [
        {"adapter_id": pair[0], "weight": 0.7},
        {"adapter_id": pair[1], "weight": 0.3},
    ]
    answer = shared.run("generate", "--adapter", adapter["id"], "--max-tokens", "4", "say 3")
    assert answer.strip()


def test_a_merge_says_what_is_wrong_with_it(shared: Luthier, pair: list[str]) -> None:
    said = shared.run("adapter", "merge", f"{pair[0]}=much", pair[1], "--type", "cat", code=1)
    assert f"{pair[0]}=much is not ADAPTER=WEIGHT" in said
    said = shared.run("adapter", "merge", *pair, "--type", "ties", code=1)
    assert "ties needs a `density`" in said
    said = shared.run("adapter", "merge", *pair, "--into-base", code=1)
    assert "into_base takes one adapter" in said


def test_a_merge_that_nobody_follows_is_printed(shared: Luthier, pair: list[str]) -> None:
    options = ["--into-base", "--json"]
    job = json.loads(shared.run("adapter", "merge", pair[0], *options))
    assert (job["method"]["type"], job["peft"]) == ("merge", {"type": "full"})
    said = shared.run("adapter", "merge", pair[0], "--type", "linear")
    assert "luthier job follow job_" in said
