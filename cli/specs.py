"""Specs of jobs and pipelines in files."""

import json
from pathlib import Path
from typing import Any

from cli.failure import CommandFailed


def read_spec(file: Path) -> dict[str, Any]:
    """The object in a file, or CommandFailed."""
    if not file.is_file():
        raise CommandFailed(f"{file} is not a file.")
    try:
        spec = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CommandFailed(f"{file} cannot be read as JSON: {error}.") from error
    if not isinstance(spec, dict):
        raise CommandFailed(f"{file} must hold one JSON object, the spec.")
    return spec
