"""Settings at the entry points, and the options that many commands share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.failure import CommandFailed

if TYPE_CHECKING:
    from jobs.settings import Settings

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Database, objects, caches and key. [.luthier]"),
]
Url = Annotated[
    str | None,
    typer.Option("--url", envvar="LUTHIER_URL", help="Where the service is.", show_envvar=True),
]
Key = Annotated[
    str | None,
    typer.Option("--key", envvar="LUTHIER_API_KEY", help="API key.", show_envvar=True),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]


def read_settings(**flags: Any) -> "Settings":
    """Settings from the environment; given flags (not None) win. `data_dir` becomes absolute."""
    from pydantic import ValidationError

    from jobs.settings import Settings

    try:
        settings = Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        problems = tuple(_problem(problem) for problem in error.errors())
        raise CommandFailed("The configuration is not valid.", details=problems) from error
    return settings.model_copy(update={"data_dir": settings.data_dir.expanduser().absolute()})


def _problem(problem: Any) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    return f"LUTHIER_{name.upper()}: {problem['msg']}" if name else str(problem["msg"])
