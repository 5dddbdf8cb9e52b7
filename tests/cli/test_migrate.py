"""`luthier migrate --wait`: what pods do until the migration Job has been."""

import threading

import pytest
from typer.testing import CliRunner

from cli.main import app
from jobs.database import Database


def wait(seconds: str) -> tuple[int, str]:
    answer = CliRunner().invoke(app, ["migrate", "--wait", seconds], catch_exceptions=True)
    return answer.exit_code, str(answer.exception or answer.output)


def test_it_returns_when_another_has_migrated(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTHIER_DATABASE_URL", postgres_url)
    database = Database(postgres_url)
    later = threading.Timer(1.0, database.migrate)
    later.start()
    code, said = wait("60")
    later.join()
    assert code == 0, said
    assert database.current()
    database.close()


def test_it_says_what_to_do_when_nobody_has(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTHIER_DATABASE_URL", postgres_url)
    code, said = wait("0")
    assert code == 1
    assert said == "Waited 0 s. The database's schema is not the newest; run `luthier migrate`."


def test_it_waits_for_a_database_that_is_not_there_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    code, said = wait("1")
    assert code == 1
    assert said.startswith("Waited 1 s. The database does not answer")
