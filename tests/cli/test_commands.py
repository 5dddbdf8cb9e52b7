"""The client commands against a real service: what users see, and what scripts read."""

import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Luthier, Serving
from tests.workers import conversations


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, conversations(60))))
    return file


@pytest.fixture(scope="module")
def dataset(shared_serving: tuple[Luthier, Serving], rows: Path) -> dict[str, Any]:
    said = shared_serving[0].run("dataset", "upload", str(rows), "--json")
    found: dict[str, Any] = json.loads(said)
    return found


@pytest.fixture(scope="module")
def job(
    shared_serving: tuple[Luthier, Serving], dataset: dict[str, Any], tmp_path_factory: Any
) -> dict[str, Any]:
    """A job that has succeeded, and what following it looked like."""
    shared, _ = shared_serving
    file = tmp_path_factory.mktemp("job") / "job.json"
    spec = {"method": {"type": "sft", "learning_rate": 5e-3}}
    file.write_text(json.dumps(spec))
    options = ["--dataset", dataset["id"], "--epochs", "2", "--rank", "4", "--name", "first"]
    said = shared.run("job", "submit", str(file), *options, "--follow")
    newest: dict[str, Any] = json.loads(shared.run("job", "list", "--json"))[0]
    return newest | {"said": said}


def test_a_dataset_is_uploaded_listed_and_shown(
    shared: Luthier, dataset: dict[str, Any], rows: Path
) -> None:
    said = shared.run("dataset", "upload", str(rows))

    assert "60 conversation rows" in said
    assert dataset["id"] in shared.run("dataset", "list")
    assert dataset["sha256"] in shared.run("dataset", "show", dataset["id"])


def test_the_preview_marks_what_is_learned(shared: Luthier, dataset: dict[str, Any]) -> None:
    said = shared.run("dataset", "preview", dataset["id"], "--limit", "1")

    assert "<|user|>say 0<|assistant|>[[number 0 it is</s>]]" in said


def test_statistics_show_lengths_as_bars(shared: Luthier, dataset: dict[str, Any]) -> None:
    said = shared.run("dataset", "stats", dataset["id"])

    assert "trained_tokens" in said
    assert "Tokens a row" in said
    assert "█" in said


def test_a_bad_file_is_refused_with_its_lines(shared: Luthier, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"messages": []}\n{"oops": 1}\n')

    said = shared.run("dataset", "upload", str(bad), code=1)

    assert "✗" in said
    assert "line 1" in said
    assert "line 2" in said
    assert "Traceback" not in said


def test_following_a_job_shows_its_loss_and_ends_with_the_adapter(job: dict[str, Any]) -> None:
    said = job["said"]

    assert "is queued" in said
    assert "loss" in said
    assert f"step {job['progress']['total_steps']}/{job['progress']['total_steps']}" in said
    assert f"Adapter {job['adapter_id']}" in said
    assert "of it is not training" in said
    assert f'luthier generate --adapter {job["adapter_id"]} "..."' in said


def test_options_go_before_what_the_file_says(job: dict[str, Any]) -> None:
    assert job["base_model"] == "tiny"  # the only one there is
    assert job["method"]["num_train_epochs"] == 2
    assert job["method"]["learning_rate"] == 5e-3
    assert job["peft"]["r"] == 4
    assert job["name"] == "first"


def test_a_job_is_listed_shown_and_its_events_told(shared: Luthier, job: dict[str, Any]) -> None:
    listed = shared.run("job", "list", "--status", "succeeded")
    shown = shared.run("job", "show", job["id"])
    events = shared.run("job", "events", job["id"])

    assert job["id"] in listed
    assert "first" in listed
    assert job["adapter_id"] in shown
    assert events.splitlines()[0].endswith("queued")
    assert "loss" in events


def test_a_job_that_has_ended_cannot_be_cancelled(shared: Luthier, job: dict[str, Any]) -> None:
    said = shared.run("job", "cancel", job["id"], code=1)

    assert said.startswith("✗")
    assert len(said.splitlines()) == 1


def test_a_job_that_makes_no_sense_is_refused_with_its_fields(
    shared: Luthier, dataset: dict[str, Any]
) -> None:
    options = ["--base-model", "tiny", "--dataset", dataset["id"], "--rank", "5000"]
    said = shared.run("job", "submit", *options, code=1)

    assert "peft" in said
    assert "Traceback" not in said


def test_virtual_tokens_are_an_option(shared: Luthier, dataset: dict[str, Any]) -> None:
    options = ["--base-model", "tiny", "--dataset", dataset["id"], "--virtual-tokens", "100000"]
    said = shared.run("job", "submit", *options, "--peft", "prompt_tuning", code=1)

    assert "peft.num_virtual_tokens" in said
    assert "Traceback" not in said


def test_a_job_mixes_datasets_replays_another_and_packs_them(
    shared: Luthier, dataset: dict[str, Any], tmp_path: Path
) -> None:
    """From the command line to the adapter: what was held out is reported by dataset."""
    ids = []
    for name in ("tell", "number"):
        file = tmp_path / f"{name}.jsonl"
        rows = [{"prompt": f"{name} {i}", "completion": f"it is {i}"} for i in range(20)]
        file.write_text("\n".join(map(json.dumps, rows)))
        ids.append(json.loads(shared.run("dataset", "upload", str(file), "--json"))["id"])
    spec = tmp_path / "job.json"
    method = {"packing": True, "kl_coef": 0.1, "validation_split": 0.1, "max_length": 128}
    spec.write_text(json.dumps({"method": {"type": "sft", **method}}))
    options = ["--mixture", f"{dataset['id']}=2", "--mixture", ids[0], "--replay", f"{ids[1]}=0.5"]
    estimated = json.loads(shared.run("job", "estimate", str(spec), *options, "--json"))
    shared.run("job", "submit", str(spec), *options, "--epochs", "2", "--rank", "4", "--follow")

    job = json.loads(shared.run("job", "list", "--json"))[0]
    assert [part["weight"] for part in job["mixture"]] == [2.0, 1.0]
    assert job["actual"]["steps"] == job["estimate"]["steps"]
    assert job["actual"]["trained_rows"] == job["estimate"]["trained_rows"] == 72 + 36
    adapter = json.loads(shared.run("adapter", "show", job["adapter_id"], "--json"))
    assert {"eval_kl", "eval_replay_loss", f"eval_loss/{ids[0]}"} <= adapter["metrics"].keys()
    assert (estimated["mixture"], estimated["replay"]) == (job["mixture"], job["replay"])
    assert estimated["trained_rows"] == 72 + 36
    bad = shared.run("job", "submit", "--mixture", "ds_1=much", code=1)
    assert "ds_1=much is not DATASET=WEIGHT" in bad


def test_an_adapter_answers_in_one_piece_and_in_words(shared: Luthier, job: dict[str, Any]) -> None:
    options = ["--adapter", job["adapter_id"], "--temperature", "0", "--max-tokens", "8"]
    whole = shared.run("generate", *options, "say 3")
    streamed = shared.run("generate", *options, "--stream", "say 3")
    answer = json.loads(shared.run("generate", *options, "--json", "say 3"))

    assert whole == streamed
    assert whole.rstrip("\n") == answer["text"].rstrip("\n")
    assert answer["adapter_id"] == job["adapter_id"]


def test_an_adapter_is_taken_away_and_brought_back(
    shared: Luthier, job: dict[str, Any], tmp_path: Path
) -> None:
    target = tmp_path / "adapter.tar"
    shared.run("adapter", "download", job["adapter_id"], "--to", str(target))
    with tarfile.open(target) as archive:
        names = archive.getnames()
    options = ["--base-model", "tiny", "--name", "back", "--json"]
    back = json.loads(shared.run("adapter", "import", str(target), *options))

    assert "adapter_model.safetensors" in names
    assert [path.name for path in tmp_path.iterdir()] == ["adapter.tar"]
    listed = shared.run("adapter", "list")
    assert job["adapter_id"] in listed
    assert back["id"] in listed
    assert "is deleted" in shared.run("adapter", "delete", back["id"])
    assert back["id"] not in shared.run("adapter", "list")


def test_an_unknown_id_is_one_red_line(shared: Luthier) -> None:
    said = shared.run("adapter", "show", "ad_" + "0" * 24, code=1)

    assert said.startswith("✗")
    assert len(said.splitlines()) == 1


def test_a_key_that_was_revoked_opens_nothing(shared: Luthier) -> None:
    made = shared.run("key", "create", "--name", "spare").splitlines()
    key_id, key = made[0].split()[0], made[-1]

    shared.run("job", "list", "--key", key)
    assert "spare" in shared.run("key", "list")
    shared.run("key", "revoke", key_id)
    assert "valid API key" in shared.run("job", "list", "--key", key, code=1)


def test_the_keys_of_another_tenant_see_nothing_of_ours(
    shared: Luthier, dataset: dict[str, Any]
) -> None:
    key = shared.run("key", "create", "--tenant", "others").splitlines()[-1]

    assert dataset["id"] not in shared.run("dataset", "list", "--key", key)
    assert "No tenant" in shared.run("key", "list", "--tenant", "nobody", code=1)


def test_a_job_is_estimated_from_its_file(
    shared: Luthier, dataset: dict[str, Any], job: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "job.json"
    file.write_text(json.dumps({"method": {"type": "sft", "learning_rate": "auto"}}))

    said = shared.run("job", "estimate", str(file), "--dataset", dataset["id"])
    found = json.loads(
        shared.run("job", "estimate", str(file), "--dataset", dataset["id"], "--json")
    )

    assert "trainable_parameters" in said
    assert "activations" in said
    assert re.search(r"\d earlier jobs? on this base", said)  # other tests run jobs here too
    assert (found["rows"], found["steps"]) == (60, 24)
    assert found["method"]["auto"] == ["learning_rate"]


def test_a_finished_job_shows_what_was_expected_beside_what_it_took(
    shared: Luthier, job: dict[str, Any]
) -> None:
    said = shared.run("job", "show", job["id"])
    assert job["estimate"]["steps"] == job["actual"]["steps"] == 16
    assert job["estimate"]["trained_tokens"] == job["actual"]["trained_tokens"]
    rows = [line.split() for line in said.splitlines()]
    assert ["steps", "16", "16"] in rows
    assert any(row[:2] == ["peak", "memory"] for row in rows)
