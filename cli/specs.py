"""Specs of jobs and pipelines in files."""

import json
from pathlib import Path
from typing import Any

from cli.failure import CommandFailed


def numbered(text: str, field: str) -> dict[str, Any]:
    """A dataset with a number: `ds_...=3`, or its id alone for the number that is usual."""
    id, equals, number = text.partition("=")
    try:
        return {"dataset": id} | ({field: float(number)} if equals else {})
    except ValueError as error:
        raise CommandFailed(
            f"{text} is not DATASET={field.upper()}, such as ds_...=0.5."
        ) from error


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
