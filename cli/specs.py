"""Specs of jobs and pipelines, from files and options."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cli.failure import CommandFailed


def rows(dataset: str | None, mixture: Sequence[str], replay: str | None) -> dict[str, Any]:
    """The fields of a spec that say what a job learns from, as far as they were given."""
    given = {
        "dataset": dataset,
        "mixture": [numbered(part, "weight") for part in mixture] or None,
        "replay": None if replay is None else numbered(replay, "ratio"),
    }
    return {field: value for field, value in given.items() if value is not None}


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
