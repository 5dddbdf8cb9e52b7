"""Log events and log files: what a line looks like, and that none gets lost on the way."""

import asyncio
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from cli import logfile, look
from cli.logfile import LogFile
from cli.logs import configure_logging, line_of, parse
from cli.look import CROSS


@pytest.fixture
def _as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


@pytest.mark.usefixtures("_as_it_was")
def test_json_lines_carry_role_time_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json", "worker")
    structlog.get_logger().info("job.claimed", job_id="job_1", attempt=2)
    logging.getLogger("somebody").warning("beware of %s", "this")

    first, second = map(parse, capsys.readouterr().err.splitlines())
    assert first is not None
    assert second is not None
    assert first["timestamp"].endswith("Z")
    wanted = {"event": "job.claimed", "job_id": "job_1", "attempt": 2, "role": "worker"}
    assert wanted.items() <= first.items()
    assert {"event": "beware of this", "level": "warning"}.items() <= second.items()


@pytest.mark.usefixtures("_as_it_was")
def test_an_exception_is_told_by_places_and_classes_and_never_by_its_text(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging("json", "api")
    text = "a client's row"
    try:
        try:
            raise ValueError(text)
        except ValueError as error:
            raise RuntimeError(text) from error
    except RuntimeError as broken:
        structlog.get_logger().exception("request.failed")
        structlog.get_logger().error("request.failed", exc_info=broken)
        logging.getLogger("somebody").exception("failed")

    said = capsys.readouterr().err
    for event in map(parse, said.splitlines()):
        assert event is not None
        assert "\nValueError\n" in event["exception"]
        assert event["exception"].endswith("\nRuntimeError")
        assert "test_logs.py" in event["exception"]
    assert said.count("\n") == 3
    assert text not in said


def test_a_line_for_eyes_has_clock_role_event_and_fields() -> None:
    event = {
        "event": "job.claimed",
        "level": "info",
        "role": "worker",
        "logger": "jobs.runner",
        "timestamp": "2026-01-02T03:04:05Z",
        "job_id": "job_1",
        "loss": 0.123456,
    }

    line = line_of(event).plain

    assert line.endswith(":04:05  worker     job.claimed job_id=job_1 loss=0.1235")


@pytest.mark.parametrize("line", ["Traceback (most recent call last):", "[1, 2]", '{"a": 1}', ""])
def test_what_is_no_event_is_not_taken_for_one(line: str) -> None:
    assert parse(line) is None


def test_lines_come_whole_and_only_the_new_ones(tmp_path: Path) -> None:
    path = tmp_path / "api.log"
    path.write_text("of an earlier process\n")
    log = LogFile(path)
    with path.open("a") as file:
        file.write("one\ntw")
        file.flush()
        first = log.new_lines()
        file.write("o\n")
    assert (first, log.new_lines(), log.new_lines()) == (["one"], ["two"], [])


def test_a_log_that_grew_large_is_moved_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logfile, "MAX_BYTES", 10)
    path = tmp_path / "api.log"
    log = LogFile(path)
    with path.open("a") as file:
        file.write("a line that is long\n")
        file.flush()
        log.new_lines()
        log.rotate()
        file.write("next\n")
    assert (tmp_path / "api.log.1").read_text() == "a line that is long\n"
    assert path.read_text() == "next\n"
    assert log.new_lines() == ["next"]


def test_last_words_are_the_verdict_or_what_was_no_event(tmp_path: Path) -> None:
    path = tmp_path / "api.log"
    path.write_text(f"{CROSS} of an earlier process\n")
    log = LogFile(path)
    with path.open("a") as file:
        file.write(json.dumps({"event": "http.listening"}) + "\nTraceback:\n  ValueError: no\n")
    without_verdict = log.last_words()
    with path.open("a") as file:
        file.write(f"{CROSS} The port is taken.\n  a detail\n")

    assert without_verdict == ["Traceback:", "  ValueError: no"]
    assert log.last_words() == ["The port is taken."]


@pytest.mark.usefixtures("_as_it_was")
def test_a_stream_that_is_cut_at_the_end_is_no_news(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json", "api")
    uvicorn = logging.getLogger("uvicorn.error")
    uvicorn.error("Cancel %s running task(s), timeout graceful shutdown exceeded", 1)
    try:
        raise asyncio.CancelledError
    except asyncio.CancelledError:
        uvicorn.exception("Exception in ASGI application")
    assert capsys.readouterr().err == ""

    try:
        raise RuntimeError("broken")
    except RuntimeError:
        uvicorn.exception("Exception in ASGI application")
    assert "RuntimeError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "found", "said"),
    [
        (".venv/bin/luthier", None, ".venv/bin/luthier key list"),
        (".venv/bin/luthier", "/usr/bin/luthier", "luthier key list"),
        ("cli/main.py", None, "luthier key list"),
    ],
)
def test_commands_to_copy_start_the_program_that_was_started(
    monkeypatch: pytest.MonkeyPatch,
    typed: str,
    found: str | None,
    said: str,
) -> None:
    monkeypatch.setattr("sys.argv", [typed])
    monkeypatch.setattr("shutil.which", lambda _: found)
    with look.out.capture() as captured:
        look.commands(["luthier key list", "export A=luthier"])
    assert captured.get().split("\n")[:2] == [f"    {said}", "    export A=luthier"]
