"""`luthier pipeline` against a real service: one file in, each stage's adapter out."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Luthier, wait_for
from tests.workers import conversations


@pytest.fixture
def file(tmp_path: Path) -> Path:
    steps = {"type": "sft", "max_steps": 2}
    first = {"method": steps, "peft": {"type": "lora", "r": 2}}
    stages = {"first": first, "then": {"method": steps, "init": "@first"}}
    path = tmp_path / "pipeline.json"
    path.write_text(json.dumps({"name": "both", "stages": stages}))
    return path


@pytest.fixture
def rows(shared: Luthier, tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, conversations(60))))
    found: dict[str, Any] = json.loads(shared.run("dataset", "upload", str(path), "--json"))
    return str(found["id"])


def show(shared: Luthier, pipeline_id: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(shared.run("pipeline", "show", pipeline_id, "--json"))
    return found


def test_a_pipeline_runs_from_one_file_to_its_last_adapter(
    shared: Luthier, file: Path, rows: str
) -> None:
    datasets = ["--dataset", f"first={rows}", "--dataset", f"then={rows}"]
    made = json.loads(shared.run("pipeline", "submit", str(file), *datasets, "--json"))

    ended = ("succeeded", "failed", "cancelled")
    wait_for(lambda: show(shared, made["id"])["status"] in ended, 120)

    done = show(shared, made["id"])
    assert done["status"] == "succeeded", done
    said = shared.run("pipeline", "show", made["id"])
    assert done["stages"]["then"]["adapter_id"] in said
    assert done["stages"]["first"]["job_id"] in said
    listed = shared.run("pipeline", "list")
    assert made["id"] in listed
    assert "2/2" in listed
    adapter = json.loads(
        shared.run("adapter", "show", done["stages"]["then"]["adapter_id"], "--json")
    )
    parent = done["stages"]["first"]["adapter_id"]
    assert adapter["lineage"]["parent_adapter_id"] == parent
    assert shared.run("pipeline", "cancel", made["id"], code=1).startswith("✗")
    options = ["--dataset", rows, "--init", parent, "--epochs", "900", "--json"]
    job = json.loads(shared.run("job", "submit", *options))
    assert (job["init"], job["peft"]["r"]) == (parent, 2)
    assert "still needs" in shared.run("adapter", "delete", parent, code=1)
    shared.run("job", "cancel", job["id"])


def test_a_pipeline_is_cancelled(shared: Luthier, file: Path, rows: str) -> None:
    spec = json.loads(file.read_text())
    spec["stages"]["first"]["method"]["max_steps"] = 100_000
    file.write_text(json.dumps(spec))
    datasets = ["--dataset", f"first={rows}", "--dataset", f"then={rows}"]
    said = shared.run("pipeline", "submit", str(file), *datasets)
    pipeline_id = said.split()[2]

    shared.run("pipeline", "cancel", pipeline_id)

    wait_for(lambda: show(shared, pipeline_id)["status"] == "cancelled", 60)
    assert show(shared, pipeline_id)["stages"]["then"]["job_id"] is None


def test_a_pipeline_that_makes_no_sense_is_refused_with_its_fields(
    shared: Luthier, file: Path, rows: str, tmp_path: Path
) -> None:
    said = shared.run("pipeline", "submit", str(file), "--dataset", f"first={rows}", code=1)
    assert "stages.then.dataset" in said
    said = shared.run("pipeline", "submit", str(file), "--dataset", f"other={rows}", code=1)
    assert "STAGE=DS" in said
    empty = tmp_path / "empty.json"
    empty.write_text("{}")
    assert "stages" in shared.run("pipeline", "submit", str(empty), code=1)


def test_a_checkpoint_is_published_and_answers(shared: Luthier, rows: str, tmp_path: Path) -> None:
    spec = {"method": {"type": "sft", "max_steps": 3}, "checkpoint_every": 2, "dataset": rows}
    path = tmp_path / "job.json"
    path.write_text(json.dumps(spec))
    shared.run("job", "submit", str(path), "--rank", "2", "--follow")
    job_id = json.loads(shared.run("job", "list", "--limit", "1", "--json"))[0]["id"]
    checkpoint = json.loads(shared.run("checkpoint", "list", job_id, "--json"))[0]["id"]

    assert checkpoint in shared.run("checkpoint", "list", job_id)
    said = shared.run("checkpoint", "publish", job_id, checkpoint)

    adapter_id = said.split()[2]
    assert "at step 2" in said
    options = ["--adapter", adapter_id, "--temperature", "0", "--max-tokens", "4", "--json"]
    answer = json.loads(shared.run("generate", *options, "say 3"))
    assert answer["adapter_id"] == adapter_id
