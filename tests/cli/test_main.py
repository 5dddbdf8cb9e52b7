"""The command itself: quick to answer, helpful everywhere, one line for an expected failure."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from cli.main import app
from tests.workers import REPO

HEAVY = ("torch", "transformers", "fastapi", "sqlalchemy", "httpx", "pydantic_settings", "boto3")


def commands() -> list[list[str]]:
    root = get_command(app)
    found = []
    for name, command in root.commands.items():  # type: ignore[attr-defined]  # a group
        found.append([name])
        found += [[name, inner] for inner in getattr(command, "commands", {})]
    return found


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_every_command_explains_itself(arguments: list[str]) -> None:
    answer = CliRunner().invoke(app, [*arguments, "--help"])

    assert answer.exit_code == 0
    assert "Usage: " in answer.output


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from cli.main import app; "
        "CliRunner().invoke(app, ['--help']); "
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    said = subprocess.check_output([sys.executable, "-c", code], cwd=REPO, text=True)

    assert said == "[]\n"


def test_a_package_that_shadows_one_of_ours_is_named(tmp_path: Path) -> None:
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "__init__.py").touch()
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from cli.main import main; main()"
    command = [sys.executable, "-c", code, "migrate", "--data-dir", str(tmp_path / "data")]
    ended = subprocess.run(command, cwd=REPO, text=True, capture_output=True)

    assert ended.returncode == 1
    assert "The package 'adapters' is not Luthier's" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_migrate_makes_the_database_and_may_be_repeated(tmp_path: Path) -> None:
    for _ in range(2):
        answer = CliRunner().invoke(app, ["migrate", "--data-dir", str(tmp_path)])
        assert answer.exit_code == 0

    assert (tmp_path / "luthier.db").exists()
