"""Texts of a job that a database could not look into."""

from collections.abc import Iterator
from typing import Any

from jobs.errors import SpecProblem
from jobs.model import JobSpec


def of_texts(job: JobSpec) -> Iterator[SpecProblem]:
    """PostgreSQL keeps a NUL in JSON and then reads no other field of it, for metrics and lists."""
    for place in _with_nul(job.model_dump(mode="json"), ""):
        said = f"{place}: has a NUL character; remove it."
        yield SpecProblem(place, "invalid_request", said)


def _with_nul(value: Any, place: str) -> Iterator[str]:
    if isinstance(value, str):
        if "\0" in value:
            yield place
    elif isinstance(value, list):
        for i, each in enumerate(value):
            yield from _with_nul(each, f"{place}.{i}")
    elif isinstance(value, dict):
        for key, each in value.items():
            if "\0" in key:
                yield place
            yield from _with_nul(each, f"{place}.{key}" if place else key)
