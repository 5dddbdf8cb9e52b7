"""`luthier demo` on a base model that is too small to learn: the path, not the learning."""

import json
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.cli.conftest import Luthier, Serving, living
from tests.workers import conversations


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    """Rows, held-out prompts and a job, as examples/data has them."""
    folder = tmp_path / "examples"
    folder.mkdir()
    rows = conversations(66)
    held_out = [
        {"messages": row["messages"][:1], "expected": row["messages"][1]["content"]}
        for row in rows[60:]
    ]
    for name, lines in (("demo_train", rows[:60]), ("demo_heldout", held_out)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    job = {"base_model": "tiny", "method": {"type": "sft", "num_train_epochs": 1}}
    (folder / "demo_job.json").write_text(json.dumps(job))
    return folder


def test_it_shows_the_whole_path_and_check_fails_where_nothing_was_learned(
    luthier: Luthier, examples: Path
) -> None:
    options = ["--check", "--examples", str(examples), "--data-dir", str(luthier.data_dir)]
    with luthier.start("demo", *options) as process:
        family: set[psutil.Process] = set()
        while process.poll() is None:
            family |= set(_family(process.pid))
            time.sleep(0.3)
        said, _ = process.communicate()

    assert process.returncode == 1
    for words in (
        "The service is up at http://127.0.0.1:",
        "60 conversation rows",
        "loss ",
        "from posted to published",
        "held-out prompt",
        "Right    0 of 6 by the adapter, 0 of 6 by the base",
        "nothing is left running",
        "luthier generate --adapter ad_",
        "✗ The adapter answered 0% as taught (at least 90% expected)",
    ):
        assert words in said
    assert "Traceback" not in said
    assert len(family) > 3
    assert not living(list(family), 30)


def _family(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def test_interrupted_it_leaves_nothing_running(luthier: Luthier, examples: Path) -> None:
    options = ["--examples", str(examples), "--data-dir", str(luthier.data_dir)]
    running = Serving(luthier, luthier.start("demo", *options))
    running.process.send_signal(signal.SIGTERM)
    said, _ = running.process.communicate(timeout=120)

    assert running.process.returncode == 130
    assert "Traceback" not in said
    assert not running.gone(30)


def test_without_its_examples_it_says_so(luthier: Luthier, tmp_path: Path) -> None:
    said = luthier.run("demo", "--examples", str(tmp_path), code=1)

    assert "demo_train.jsonl is missing" in said
